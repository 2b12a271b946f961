"""What is wrong with an installation, a data set or a model, and the command that mends it."""
