"""Whether the candidates of a trained model would give preference pairs."""
