"""Weights of a backbone from the files that other code bases write, whatever their layout."""
