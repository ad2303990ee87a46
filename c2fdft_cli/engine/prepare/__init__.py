"""The job behind `prepare`."""
