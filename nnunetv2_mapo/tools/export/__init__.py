"""Models of MAPO for an nnU-Net that does not have this package."""
