"""How good segmentations are: the metrics of each case and class."""
