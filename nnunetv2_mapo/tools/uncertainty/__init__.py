"""Where a segmentation may be wrong: maps from dropout samples, and their worth."""

FOLDER = "uncertainty"  # in the folder of the segmentations
