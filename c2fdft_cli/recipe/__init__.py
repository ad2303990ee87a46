"""The schema of recipes, and functions that read them from files."""
