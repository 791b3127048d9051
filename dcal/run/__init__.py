"""The run directory: its identity, its lock, its files, and the points of a sweep."""
