"""The job behind `restore`."""
