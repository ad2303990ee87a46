"""The output of the commands that print most: lines, tables and progress bars."""
