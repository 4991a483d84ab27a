"""Transport: connections as Twisted carries them, and the ports that accept them."""
