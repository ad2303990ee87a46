"""The commands, one file for each; a file is imported only when its command is called."""
