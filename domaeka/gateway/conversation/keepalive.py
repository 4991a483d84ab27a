"""Keep-alive of a connection: its pings and their answers."""

from domaeka.gateway.context import Context
from domaeka.gateway.flow.writer import Writer
from domaeka.gateway.joints import PeerKernel
from domaeka.policies.liveness import Liveness, Ping
from domaeka.schema import LineQuality, RoundTripTimes
from domaeka.wire import Pong, encode_ping, timestamp_text


class KeepAlive:
    """
    Send pings, and match their answers.

    @ivar clock_skew: lead of the phone's clock over ours at its last pong, in seconds.
    @ivar waits: whether a ping has yet to leave.
    """

    __slots__ = (
        "_ahead",
        "_bot_name",
        "_context",
        "_text",
        "_writer",
        "clock_skew",
        "liveness",
        "waits",
    )

    def __init__(self, liveness: Liveness, writer: Writer, bot_name: str, context: Context) -> None:
        self.liveness = liveness
        self._writer = writer
        self._bot_name = bot_name
        self._context = context
        self._text = ""  # of the ping that waits
        self._ahead = 0  # messages sent before it
        self.clock_skew: float | None = None
        self.waits = False

    def ping(self) -> None:
        """Have a ping go out next."""
        self._text = timestamp_text(self._context.wall())
        self._ahead = self._writer.messages_sent
        self.waits = True
        self._writer.put_urgent("ping", encode_ping(self._bot_name, self._text))

    def pumped(self, now: float) -> bool:
        """
        Note that urgent frames may have left: the time of a ping runs from then.

        @return: whether a ping has left.
        """
        if not self.waits or self._writer.urgent_bytes:
            return False
        self.waits = False
        self.liveness.ping_left(Ping(self._text, now, self._context.seconds(), self._ahead))
        self._text = ""
        return True

    def blocked(self, seconds: float) -> float:
        """
        Note that media which have left block the phone for a while.

        @return: until when all that has left does, by the clock of outboxes.
        """
        now, liveness = self._context.steady.now, self.liveness
        liveness.blocked(now, seconds)
        return self._context.seconds() + liveness.blocked_until - now

    def is_unanswered(self, now: float, kernel: PeerKernel) -> bool:
        """True when the phone is given up."""
        liveness = self.liveness
        return liveness.is_stale(now) and liveness.is_stale(now, not kernel.backlog_bytes)

    def pong_received(self, pong: Pong, now: float) -> float | None:
        """
        Take a pong.

        @return: the round trip, in seconds; L{None}: it is no echo of an outstanding ping, and is
            ignored.
        """
        ping = self.liveness.outstanding(pong.server_timestamp)
        if ping is None:
            return None
        self._writer.confirmed = ping.ahead
        round_trip = self._context.seconds() - ping.exact
        if pong.auth is not None:  # signed in the middle of the round trip, as far as is known
            lead = pong.auth.timestamp / 1000 - self._context.wall()
            self.clock_skew = lead + round_trip / 2
        if self.liveness.pong(ping, now, round_trip):
            self._context.metrics.rtt.observe(round_trip)
        return round_trip

    def view(self) -> LineQuality:
        """Quality of the connection, from the answers to pings."""
        liveness = self.liveness
        quality = liveness.quality
        rtt = None
        if (trips := quality.round_trips()) is not None:
            times = (*trips[1:], quality.srtt or 0.0, quality.rttvar)
            rtt = RoundTripTimes(trips.samples, *(round(seconds, 6) for seconds in times))
        return LineQuality(
            quality.score if quality.known else None,
            quality.grade if quality.known else None,
            quality.reasons(),
            round(quality.loss, 3),
            rtt,
            liveness.interval,
            liveness.timeout,
        )
