"""The job of the command `sweep-steps`."""
