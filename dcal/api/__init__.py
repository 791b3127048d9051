"""What Python offers in the place of a command."""
