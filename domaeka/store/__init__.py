"""What is kept: devices, rooms, chat, sessions."""
