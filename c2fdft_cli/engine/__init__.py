"""Jobs: the only place where core and data meet."""
