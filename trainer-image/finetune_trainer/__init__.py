"""The trainer: one process that fine-tunes one model and tells of it over the run protocol."""
