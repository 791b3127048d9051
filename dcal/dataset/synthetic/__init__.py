"""The embedded data sets: drawn birds and people."""
