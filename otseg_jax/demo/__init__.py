"""A page for photos and words: `python -m otseg_jax.demo`."""
