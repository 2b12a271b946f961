"""Data sets become records: what is to be written, shards, and the comparison at the end."""

from otseg_jax.prepare.write import prepare

__all__ = ["prepare"]
