"""The schema of recipes, and reading them from files."""
