"""The job behind `eval`."""
