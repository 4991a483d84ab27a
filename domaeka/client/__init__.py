"""
The client library: a phone of a gateway, for programs.

    client = Client(reactor, [Server("chat.example", 9000)], Identity(bot_name="b", device_id="d"),
                    Credentials(secret_key, salt), on_reply=print)
    client.startService()
    client.say(Said(room="room", sender="me", text="# echo hello"))

docs/client.md says how it behaves.
"""

from domaeka.client.conversation import CAPABILITIES, Unreadable
from domaeka.client.events import ClientEvent, Connected, Failed, Lost, Moved, Stopped, Waiting
from domaeka.client.outgoing import Fate, QueueFull
from domaeka.client.route import Server
from domaeka.client.service import Client, Credentials
from domaeka.messages import Dialect, Media, Reply
from domaeka.phonewire import Closing, Complaint, Greeting, Identity, Moving, Said, Unknown

__all__ = [
    "CAPABILITIES",
    "Client",
    "ClientEvent",
    "Closing",
    "Complaint",
    "Connected",
    "Credentials",
    "Dialect",
    "Failed",
    "Fate",
    "Greeting",
    "Identity",
    "Lost",
    "Media",
    "Moved",
    "Moving",
    "QueueFull",
    "Reply",
    "Said",
    "Server",
    "Stopped",
    "Unknown",
    "Unreadable",
    "Waiting",
]
