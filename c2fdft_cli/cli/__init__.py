"""The command line: each command parses its options, calls one engine job and draws its events."""
