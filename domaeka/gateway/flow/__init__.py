"""Flow control of a connection, both ways, without I/O."""
