"""What a registered protocol says of its runs: which rates are chosen, every contrast with its verdict."""
