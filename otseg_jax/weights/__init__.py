"""Foreign checkpoints: one table of names per format, with exact coverage both ways."""
