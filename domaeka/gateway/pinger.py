"""
Pings of one connection, and what their answers say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from domaeka.messages import Pong, encode_ping, timestamp_text
from domaeka.policies.liveness import Liveness, Ping

if TYPE_CHECKING:
    from domaeka.gateway.parts import Parts
    from domaeka.gateway.sender import Sender


class Pinger:
    """
    Send pings, and match their answers.

    @ivar liveness: when to ping, and whether the phone is still there.
    @ivar clock_skew: how far the phone's clock was ahead of ours at its last pong, in seconds.
    @ivar waits: whether a ping is to leave that has not yet.
    """

    __slots__ = (
        "_ahead",
        "_bot_name",
        "_parts",
        "_sender",
        "_text",
        "clock_skew",
        "liveness",
        "waits",
    )

    def __init__(self, liveness: Liveness, sender: Sender, bot_name: str, parts: Parts) -> None:
        self.liveness = liveness
        self._sender = sender
        self._bot_name = bot_name
        self._parts = parts
        self._text = ""  # of the ping that waits
        self._ahead = 0  # how many messages had been sent before it
        self.clock_skew: float | None = None
        self.waits = False

    def ping(self) -> None:
        """Have a ping go out next."""
        self._text = timestamp_text(self._parts.seconds())
        self._ahead = self._sender.messages_sent
        self.waits = True
        self._sender.urge("ping", encode_ping(self._bot_name, self._text))

    def pumped(self, now: float) -> bool:
        """
        What was urgent may have left: a ping's time runs from then, not from when it queued.

        @return: whether a ping has.
        """
        if not self.waits or self._sender.urgent_waits:
            return False
        self.waits = False
        self.liveness.ping_left(Ping(self._text, now, self._parts.seconds(), self._ahead))
        self._text = ""
        return True

    def is_unanswered(self, now: float) -> bool:
        """Whether the phone is given up: its kernel is asked only where that would be early."""
        liveness = self.liveness
        return liveness.is_stale(now) and liveness.is_stale(now, self._sender.all_taken)

    def pong_received(self, pong: Pong, now: float) -> None:
        """A pong came.  Only the echo of a ping that is out says anything, and once."""
        ping = self.liveness.outstanding(pong.server_timestamp)
        if ping is None:
            return
        self._sender.confirmed = ping.ahead
        wall = self._parts.seconds()
        if pong.auth is not None:
            self.clock_skew = pong.auth.timestamp / 1000 - wall
        round_trip = max(0.0, wall - ping.wall)
        if self.liveness.pong(ping, now, round_trip):
            self._parts.metrics.rtt.observe(round_trip)
