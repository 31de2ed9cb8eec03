"""The whole method on a small phantom."""
