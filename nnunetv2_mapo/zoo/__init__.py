"""Segmentation losses and networks that nnU-Net does not have."""
