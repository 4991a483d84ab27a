"""
Domaeka, a gateway for chat-bot phones.

Bot authors import L{Bot} and L{Context} from here.
"""

__version__ = "0.1.0"
