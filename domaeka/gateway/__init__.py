"""Phones: connections, conversations, and who is there."""
