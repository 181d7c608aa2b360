"""What is kept: checkpoints, and the output."""
