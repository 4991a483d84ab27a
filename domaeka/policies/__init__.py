"""Rules that decide without I/O."""
