"""Bots: what their authors import, and how messages reach them."""
