"""How a training step is executed: the modes of `train.compile`, and CUDA graphs."""
