"""Evidence that grows by itself: many small trainings, each cell's result kept in the repository.

See "Protocol of the study" in docs/reference/benchmarks.md.
"""
