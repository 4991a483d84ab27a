"""The admin API, by subject."""
