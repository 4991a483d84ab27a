"""
When to ping a phone, and when it is given up.

Times are those of a L{SteadyTime}, which the one sweep over all connections moves on.
"""

from math import ceil, inf
from random import Random
from typing import Final, NamedTuple

from domaeka.config import PingSettings
from domaeka.policies.patience import TIMES_SLOWEST, Patience
from domaeka.policies.quality import Grade, Quality

#: A connection is never given up sooner, in seconds, unless C{ping.timeout} is below it.
#: Source: docs/protocol.md, "Ping".
MIN_TIMEOUT_SECONDS: Final = 15.0
#: Nor before this many times C{ping.interval_min}: four pings, and TCP's retransmission 29 s after
#: the first, have had their chance.
PATIENCE_INTERVALS: Final = 3.3
#: How long the peer's kernel may take nothing of what is written, in seconds.
STALLED_SECONDS: Final = 10.0
#: By how many seconds a round trip and steady time may differ: two periods of the sweep.
_CLOCK_SLACK_SECONDS: Final = 2.0
_NEVER: Final = -inf  # one for all connections


class SteadyTime:
    """
    A time that neither steps of the clock nor hold-ups of the process move.

    @ivar now: the time, in seconds, as of the last sweep.
    """

    __slots__ = ("_period", "_wall", "now")

    def __init__(self, period: float, wall: float) -> None:
        """
        @param period: of the sweep, in seconds.
        @param wall: the wall clock, in seconds.
        """
        self._period = period
        self._wall = wall
        self.now = 0.0

    def advance(self, wall: float) -> bool:
        """
        A sweep begins.

        @param wall: the wall clock, in seconds.
        @return: whether phones may be judged: not where the sweep comes late by more than its
            period, or the clock has stepped back.
        """
        elapsed = wall - self._wall
        self._wall = wall
        if 0.0 <= elapsed <= 2 * self._period:
            self.now += elapsed
            return True
        self.now += self._period
        return False

    def between(self, wall: float) -> float:
        """
        The time now, where that of the last sweep is not exact enough: for deadlines.

        @param wall: the wall clock, in seconds.
        """
        return self.now + min(max(0.0, wall - self._wall), self._period)


class Headway:
    """Whether the peer's kernel takes what is written to it, since there is something."""

    __slots__ = ("_backlog_bytes", "_made_at")

    def __init__(self, now: float) -> None:
        self._backlog_bytes = 0
        self._made_at = now

    def missing(self, backlog_bytes: int, now: float, excused: bool) -> float:
        """
        For how long it has taken nothing, in seconds.

        @param backlog_bytes: how much waits for it.
        @param excused: whether it need not take anything now.
        """
        if backlog_bytes != self._backlog_bytes or excused:
            self._backlog_bytes = backlog_bytes
            self._made_at = now
        return now - self._made_at


class Ping(NamedTuple):
    """
    A ping that has left for the socket.

    @ivar text: what the phone is to echo.
    @ivar left_at: when it left.
    @ivar wall: the same by the wall clock, for a finer round trip.
    @ivar ahead: how many messages had been sent before it.
    """

    text: str
    left_at: float
    wall: float = 0.0
    ahead: int = 0


class Liveness:
    """
    Pings and silence of one connection.

    What ends it is a ping that has been out for L{timeout} with nothing heard since.  Silence
    counts only while the phone is read from and not deaf by our order.  With C{ping.adaptive} a
    ping that goes unanswered is soon followed by another, a connection that loses pings has more
    of them, and the time-out follows from how long the device takes to answer: L{Patience}.

    Each ping that is out is waited for, so that a phone which takes longer than the pause between
    two has round trips like any other.  Phones answer in order: those before the one that was
    answered are lost.

    @ivar last_heard: when bytes last came; to be set by whoever sees them.
    @ivar deaf_until: until then the phone reads nothing, by our order.
    @ivar interval: seconds between two pings, as things are.
    @ivar timeout: seconds until it is given up, as things are.
    """

    __slots__ = (
        "_next_ping",
        "_out",
        "_patience",
        "_paused_at",
        "_queued",
        "_settings",
        "_silent_from",
        "_silent_since",
        "_void_until",
        "deaf_until",
        "interval",
        "last_heard",
        "quality",
        "timeout",
    )

    def __init__(self, settings: PingSettings, now: float, random: Random) -> None:
        """@param random: what the first ping is put off by, so that they do not all go at once."""
        self._settings = settings
        self.quality = Quality()
        self.last_heard = now
        self.deaf_until = now
        self.interval = settings.interval
        self.timeout = settings.timeout
        self._patience = Patience()
        self._next_ping = now + random.uniform(
            settings.initial_delay_min, settings.initial_delay_max
        )
        self._queued = False  # a ping is to be sent, and has not left yet
        self._out: tuple[Ping, ...] = ()  # those that may be answered yet, the oldest first
        # What left until then says nothing: for a time it could not be answered.
        self._void_until = _NEVER
        self._paused_at: float | None = None
        # The first ping since something was heard: when it left, and from when its time runs.
        self._silent_since = now
        self._silent_from = inf

    def is_of(self, patience: Patience, now: float) -> None:
        """
        It is known whose connection this is.

        @param patience: what the device's connections before have shown.
        """
        self._patience = patience
        patience.back(now, self._settings.timeout)
        self._adapt()

    def ended(self) -> None:
        """The connection has ended, and there is no newer one."""
        silent = self.last_heard <= self._silent_since
        self._patience.connection_ended(self._silent_from if silent else inf)

    def apply(self, settings: PingSettings, now: float) -> None:
        """Go on with other settings."""
        self._settings = settings
        self.interval = settings.interval
        self.timeout = settings.timeout
        self._adapt()
        self._next_ping = min(self._next_ping, now + self.interval)

    @property
    def due(self) -> float:
        """Before this time, and unless a ping leaves, there is nothing to do."""
        due = min(self._next_ping, self._follow_up_at)
        if self.last_heard <= self._silent_since:
            due = min(due, self._silent_from + self.timeout)
        return due

    def ping_due(self, now: float) -> bool:
        """Whether a ping is to be sent: said once for each, and not while one has not left."""
        if now < self._next_ping and now < self._follow_up_at:
            return False
        self._next_ping = now + self.interval
        if self._queued:
            return False
        self._queued = True
        return True

    def ping_left(self, ping: Ping) -> None:
        """A ping has left for the socket: its time runs."""
        now = ping.left_at
        if self._out:
            if self.last_heard > self._silent_from:
                took = self.last_heard - self._silent_from
                self._patience.answered(now, took, was_silent=False)
            lost, self._out = self._out[: -self._most_out], self._out[-self._most_out :]
            self._lost(lost)
            self.quality.overdue = self._overdue(now)
            self.quality.judge()
            self._adapt()
        self._out += (ping,)
        if self._queued:  # else it was sent out of turn
            self._queued = False
            self._next_ping = now + self.interval
        if self.last_heard > self._silent_since or self._silent_from == inf:
            self._silent_since = now
            self._silent_from = max(now, self.deaf_until)
        if self._paused_at is not None or now < self.deaf_until:
            self._void_until = now

    def outstanding(self, text: object) -> Ping | None:
        """The ping that C{text} is the echo of, if it may still be answered."""
        for ping in self._out:
            if ping.text == text:
                return ping
        return None

    def pong(self, ping: Ping, now: float, round_trip: float) -> bool:
        """
        A ping that is L{outstanding} was answered.

        @param round_trip: after so many seconds, by a finer clock.
        @return: whether that was a sample.
        """
        place = self._out.index(ping)
        lost, self._out = self._out[:place], self._out[place + 1 :]
        self.last_heard = now
        silent_from, self._silent_from = self._silent_from, inf
        self.quality.overdue = self._overdue(now)
        self._lost(lost)
        # Where the clocks disagree, one was stepped, or the process was held up.
        agree = abs(round_trip - (now - ping.left_at)) <= _CLOCK_SLACK_SECONDS
        is_sample = agree and ping.left_at > self._void_until
        if is_sample:
            self.quality.answered(round_trip)
            took = max(round_trip, now - silent_from)
            self._patience.answered(now, took, was_silent=silent_from < inf)
        else:
            self.quality.judge()
        self._adapt()
        return is_sample

    def deafened(self, now: float, seconds: float) -> None:
        """A media frame has left: the phone will be deaf for so long, one frame after another."""
        self.deaf_until = max(now, self.deaf_until) + seconds
        self._silent_from += seconds
        self._void_until = now

    def reading_paused(self, now: float) -> None:
        """The phone is not read from for a while."""
        self._paused_at = now
        self._void_until = now

    def reading_resumed(self, now: float) -> None:
        """The phone is read from again."""
        if self._paused_at is not None:
            if self.last_heard <= self._silent_since:
                self._silent_from += now - max(self._paused_at, self._silent_since)
            self._paused_at = None

    def is_stale(self, now: float, taken: bool = False) -> bool:
        """
        Whether the phone is given up.

        @param taken: whether its kernel has all that was written: the line lives, and only the
            app is silent.  Then C{ping.timeout} holds.
        """
        timeout = self._settings.timeout if taken else self.timeout
        return (
            now - self._silent_from >= timeout
            and self.last_heard <= self._silent_since
            and self._paused_at is None
        )

    @property
    def _follow_up_at(self) -> float:
        """When the last ping, if it is still out, is followed by another."""
        out = self._out
        if not out or not self._settings.adaptive or out[-1].left_at <= self._void_until:
            return inf
        return out[-1].left_at + self._usual_seconds

    @property
    def _usual_seconds(self) -> float:
        """Within this time a ping is answered, as a rule."""
        return max(self._shortest_interval, 2 * (self.quality.srtt or 0.0))

    @property
    def _most_out(self) -> int:
        """How many pings are waited for, beside the last: as many as leave within a time-out."""
        settings = self._settings
        pause = self._shortest_interval if settings.adaptive else settings.interval
        return ceil(settings.timeout / pause)

    @property
    def _shortest_interval(self) -> float:
        return min(self._settings.interval_min, self._settings.interval)

    def _lost(self, pings: tuple[Ping, ...]) -> None:
        """Pings will not be answered any more."""
        for ping in pings:
            if ping.left_at > self._void_until:
                self.quality.missed()

    def _overdue(self, now: float) -> int:
        """How many pings are out for longer than usual."""
        since = now - self._usual_seconds
        return sum(self._void_until < ping.left_at <= since for ping in self._out)

    def _adapt(self) -> None:
        """Work out the interval and the time-out anew."""
        settings = self._settings
        if not settings.adaptive:
            return
        quality, shortest = self.quality, self._shortest_interval
        # To ask a phone more often that answers, only late, would tell nothing.
        worse = quality.loss > 0 and quality.grade in (Grade.POOR, Grade.FAILING)
        self.interval = min(settings.interval, self._usual_seconds if worse else inf)
        self.timeout = self._patience.seconds(
            max(MIN_TIMEOUT_SECONDS, PATIENCE_INTERVALS * shortest, TIMES_SLOWEST * quality.worst),
            settings.timeout,
        )
