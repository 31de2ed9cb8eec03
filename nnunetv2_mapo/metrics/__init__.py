"""Metrics of a mask against its ground truth: pure functions of masks and spacing, no files."""
