"""The command line: parse, call one engine job, draw."""
