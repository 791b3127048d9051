"""Training, in the order of a batch's way: build, trainer, step, accumulation; then checkpoints and logs."""
