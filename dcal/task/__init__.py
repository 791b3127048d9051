"""What is learned and how it is judged: the loss of a batch, the evaluation, the primary metric."""
