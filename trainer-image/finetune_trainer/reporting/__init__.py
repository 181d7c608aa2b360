"""What is told: progress, metrics, the log, the history."""
