"""The method: what one reads to know what MAPO does."""
