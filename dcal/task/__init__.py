"""What a run is about: the loss of a batch, the evaluation and the headline metric."""
