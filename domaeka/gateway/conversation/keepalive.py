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
        "_files_ahead",
        "_files_asked",
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
        self._files_ahead = 0  # messages sent, with the last files
        self._files_asked = 0  # the same when a ping was sent behind files
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

    def files_left(self, seconds: float) -> None:
        """
        Note that files have left last, which block the phone for so many C{seconds}: that is no
        silence, and what waits keeps its time.  Other files wait until the phone is done with them,
        unless the server empties.
        """
        context, liveness, outbox = self._context, self.liveness, self._writer.outbox
        liveness.blocked(context.steady.now, seconds)
        self._files_ahead = self._writer.messages_sent
        if outbox is not None:
            now = context.seconds()
            until = now + liveness.blocked_until - context.steady.now
            outbox.stay_away(max(outbox.away_until, until))
            if context.serving.takes_work:
                outbox.hold_files(now + seconds)

    def files_wait(self) -> None:
        """Send a ping behind the last files, once: the answer says that the phone is done."""
        if not self.waits and self._files_asked != self._files_ahead:
            self._files_asked = self._files_ahead
            self.ping()
            self._writer.pump()

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
        if 0 < self._files_ahead <= ping.ahead and self._writer.outbox is not None:
            self._writer.outbox.files_done()
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
