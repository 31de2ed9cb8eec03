"""One HTML page that shows what a training did."""
