"""Methods on the same cases, and what can be concluded."""
