"""What is learned and how: the model, its loss, the optimizer, evaluation."""
