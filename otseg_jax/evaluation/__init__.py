"""Evaluation: windows, stitched scores, metrics, figures, the report."""
