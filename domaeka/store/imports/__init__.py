"""The import of what the previous system has stored."""
