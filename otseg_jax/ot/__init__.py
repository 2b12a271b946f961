"""Optimal transport, arrays in and arrays out: Sinkhorn, its Newton solver, implicit gradients."""
