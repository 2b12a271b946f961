"""Modules in a row, as an attribute of another module."""

from flax import nnx

# Colab ships flax 0.11, which keeps modules in plain lists and has no nnx.List; 0.12 refuses plain
# lists. To go once pyproject.toml asks for flax 0.12.
Modules = getattr(nnx, "List", list)
