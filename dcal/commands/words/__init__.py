"""The words of a command line: which keys there are, and what is made of what was typed."""
