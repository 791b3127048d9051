"""The entry points of the ten commands; none imports another."""
