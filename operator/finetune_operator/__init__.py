"""The operator: turns FineTuneRuns into Jobs, follows them, and writes what happened into their status."""
