"""Phones: their connections, conversations and devices; and the server's states."""

from domaeka.gateway.serving import ServerState as ServerState
from domaeka.gateway.serving import Step as Step
