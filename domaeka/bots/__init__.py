"""Bots: the API for their authors, and the way of messages to their commands."""
