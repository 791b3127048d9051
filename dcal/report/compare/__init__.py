"""Two runs, groups of runs, or files of predictions, compared on the same test items."""
