"""The store: devices, rooms, chat, sessions."""
