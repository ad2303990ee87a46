"""Files and folders of the user: reading, atomic writing, locks, identity, errors."""
