"""One HTML page about the runs in a folder: what they are, their tables, curves and pictures."""
