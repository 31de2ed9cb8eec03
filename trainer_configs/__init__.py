"""What nnU-Net finds: trainers with MAPO. Everything with behaviour is in `nnunetv2_mapo`."""
