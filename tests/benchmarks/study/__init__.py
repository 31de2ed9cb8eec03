"""Evidence that grows by itself: many small trainings, each cell's result kept in the repository.

See docs/reference/study.md.
"""
