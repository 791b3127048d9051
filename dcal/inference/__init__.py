"""What is done with a trained run: restore it, embed images, index them, export the model."""
