"""A run in MLflow: what the run's folder remembers is sent there by a thread, from where the last attempt left off."""
