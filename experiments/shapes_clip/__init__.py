"""The small CLIP that the package ships: captions of the shapes world, and its training."""
