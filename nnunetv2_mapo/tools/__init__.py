"""What is done with trainings and trained models; the command line calls it."""
