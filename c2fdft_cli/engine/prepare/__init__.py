"""The job of the command `prepare`."""
