"""Training: losses, pseudo-labels, optimiser, one step, the loop around it, its log."""
