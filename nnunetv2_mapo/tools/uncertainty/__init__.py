"""Where a segmentation may be wrong: maps from dropout samples, and their worth."""

FOLDER = "uncertainty"  # in the folder of the segmentations
USUAL_RATE = 0.1  # dropout rate of the samples, if the network was trained with that much
