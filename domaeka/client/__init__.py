"""Client library: a phone of a gateway, for programs.  docs/client.md describes it."""

from domaeka.client.conversation import CAPABILITIES, Unreadable
from domaeka.client.events import ClientEvent, Connected, Failed, Lost, Moved, Stopped, Waiting
from domaeka.client.route import Server
from domaeka.client.send_queue import Fate, QueueFull
from domaeka.client.service import Client, Credentials
from domaeka.clock import keep_going
from domaeka.wire import (
    Dialect,
    ErrorFrame,
    Greeting,
    Identity,
    Media,
    MigrationNotice,
    ReplayNotice,
    Reply,
    Said,
    ShutdownNotice,
    Unknown,
)

__all__ = [
    "CAPABILITIES",
    "Client",
    "ClientEvent",
    "Connected",
    "Credentials",
    "Dialect",
    "ErrorFrame",
    "Failed",
    "Fate",
    "Greeting",
    "Identity",
    "Lost",
    "Media",
    "MigrationNotice",
    "Moved",
    "QueueFull",
    "ReplayNotice",
    "Reply",
    "Said",
    "Server",
    "ShutdownNotice",
    "Stopped",
    "Unknown",
    "Unreadable",
    "Waiting",
    "keep_going",
]
