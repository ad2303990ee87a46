"""The job behind `sweep-steps`."""
