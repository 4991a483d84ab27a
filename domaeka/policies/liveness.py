"""
Liveness: when to ping a phone, and when to give it up.

Times are those of a L{SteadyTime}, which the sweep advances.
"""

from collections.abc import Callable
from math import ceil, inf
from random import Random
from typing import Final, NamedTuple

from domaeka.config import PingSettings
from domaeka.policies.quality import Grade, Quality

#: Least time-out, in seconds, unless C{ping.timeout} is below it.
#: Source: docs/protocol.md, "Ping".
MIN_TIMEOUT_SECONDS: Final = 15.0
#: Least time-out, in multiples of C{ping.interval_min}: four pings, and TCP's retransmission 29 s
#: after the first, have had their chance.
TIMEOUT_INTERVALS: Final = 3.3
#: Longest time for which the peer's kernel may take nothing of what is written, in seconds.
STALLED_SECONDS: Final = 10.0
#: A phone that has talked is pinged when it has been silent for so long, in seconds: else a path
#: that falls silent would show with the next regular ping only, up to 30 s later.  There is one
#: such ping a minute, and two more for minutes without.
PROBE_SECONDS: Final = 5.0
_PROBE_PERIOD_SECONDS: Final = 60.0
_PROBE_CREDIT_SECONDS: Final = 120.0
#: A connection on which nothing was acknowledged for so long is sent no more messages, in seconds:
#: they would be lost with it.
HOLD_SECONDS: Final = 3.0
#: The connection of a phone is finished when nothing was acknowledged for so long, in seconds.  A
#: phone has no watchdog: it comes back when it gets our FIN, and loses what it said when it gets a
#: reset.
FINISH_SECONDS: Final = 20.0
#: Time for late lines on a connection that was finished, in seconds: once the phone is back, or has
#: acknowledged the FIN, and where it has not.  Source: Linux gives up what it could not send on a
#: closed connection after 50 to 100 s, on an open one after 924 s (C{tcp_retries2}).
LATE_SECONDS: Final = 120.0
GONE_SECONDS: Final = 924.0
#: Least time-out, in multiples of the longest recent silence of the device.
#: Source: docs/protocol.md, "Liveness".
TIMES_SLOWEST: Final = 3.0
#: Length of "recent", at least, in seconds; twice as much at most.
RECENT_SECONDS: Final = 3600.0
#: An answer that takes longer, in seconds, is slow.
SLOW_SECONDS: Final = 3.0
#: Prompt answers, less the cost of slow ones, for full trust in a device: a quarter of an hour's.
#: Where the network fails every four minutes, as in a subway, one ping in 13 is answered slowly:
#: full trust is hardly reached.
TRUSTED_ANSWERS: Final = 30
#: Prompt answers that a slow one costs, and most that count: one slow answer in an hour, as on LTE,
#: leaves most of the trust, and two of them none.
SLOW_COST: Final = 40
MOST_ANSWERS: Final = 60
#: Most prompt answers that may be missing after many slow ones.
MOST_MISSING: Final = 40
#: Most by which a round trip and steady time may differ, in seconds: two periods of the sweep.
_CLOCK_SLACK_SECONDS: Final = 2.0
_NEVER: Final = -inf  # shared by all connections


class SteadyTime:
    """
    Time in which delays of the process do not count.

    @ivar now: the time, in seconds, as of the last sweep.
    """

    __slots__ = ("_period", "_seconds", "_swept_at", "now")

    def __init__(self, period: float, seconds: Callable[[], float]) -> None:
        """
        @param period: of the sweep, in seconds.
        @param seconds: the time now, in seconds, which never steps.
        """
        self._period = period
        self._seconds = seconds
        self._swept_at = seconds()
        self.now = 0.0

    def advance(self) -> bool:
        """
        Begin a sweep.

        @return: whether phones may be judged: not if the sweep is late by more than its period.
        """
        seconds = self._seconds()
        elapsed = seconds - self._swept_at
        self._swept_at = seconds
        if elapsed <= 2 * self._period:
            self.now += elapsed
            return True
        self.now += self._period
        return False

    def exact(self) -> float:
        """The time now, for deadlines; C{now} is that of the last sweep."""
        return self.now + min(self._seconds() - self._swept_at, self._period)


class Responsiveness:
    """
    Answer times of a device; they outlive its connections.

    An unknown device has the whole time-out.  Each prompt answer shortens it, down to three times
    the longest recent silence; a slow answer undoes many prompt ones.
    """

    __slots__ = ("_recent_until", "_silent_from", "_slowest", "_slowest_before", "_trust")

    def __init__(self) -> None:
        self._trust = 0  # prompt answers that count
        # The longest silence of this period, and of the one before, in seconds.
        self._slowest = 0.0
        self._slowest_before = 0.0
        self._recent_until = 0.0
        # The beginning of its silence when its last connection ended.
        self._silent_from = inf

    def seconds(self, least: float, most: float) -> float:
        """
        The time for which the device may be silent, in seconds.

        @param least: that of a trusted and quick device.
        @param most: that of an unknown device.
        """
        least = max(least, TIMES_SLOWEST * max(self._slowest, self._slowest_before))
        if least >= most or self._trust <= 0:
            return most
        return most - (most - least) * min(1.0, self._trust / TRUSTED_ANSWERS)

    def answered(self, now: float, seconds: float, was_silent: bool = True) -> None:
        """
        Note that the device was heard, after so many C{seconds}.

        @param was_silent: whether that ended a silence; else the same silence was noted already.
        """
        if now >= self._recent_until:
            self._slowest_before, self._slowest = self._slowest, 0.0
            self._recent_until = now + RECENT_SECONDS
        self._slowest = max(seconds, self._slowest)
        if seconds <= SLOW_SECONDS:
            self._trust = min(MOST_ANSWERS, self._trust + 1)
        elif was_silent:
            self._trust = max(-MOST_MISSING, self._trust - SLOW_COST)

    def connection_ended(self, silent_from: float) -> None:
        """
        Note the end of the device's connection, where no newer one took its place.

        @param silent_from: the beginning of its silence; infinite: it was not silent.
        """
        self._silent_from = silent_from

    def back(self, now: float, timeout: float) -> None:
        """
        Note another connection of the device: soon after a silence, it was alive all the time.

        @param timeout: C{ping.timeout}; up to twice as much is soon.
        """
        silence = now - self._silent_from
        self._silent_from = inf
        if 0.0 < silence <= 2 * timeout:
            self.answered(now, silence)


class Ping(NamedTuple):
    """
    A ping that has left for the socket.

    @ivar text: what the phone is to echo.
    @ivar left_at: when it left, by the steady time.
    @ivar exact: the same by the exact clock, for the round trip.
    @ivar ahead: number of messages sent before it.
    """

    text: str
    left_at: float
    exact: float = 0.0
    ahead: int = 0


class Liveness:
    """
    Pings and silence of one connection.

    A ping that has been out for L{timeout} with nothing heard since ends the connection.  Silence
    counts only while the phone is read from and not blocked by media that we sent.  With
    C{ping.adaptive} an unanswered ping is soon followed by another, a connection that loses pings
    has more of them, and the time-out follows from the device's L{Responsiveness}.

    Several pings may be out, so that a phone slower than the interval has round trips, too.  Phones
    answer in order: pings before the one that was answered are lost.

    @ivar last_heard: when bytes last came; set by the conversation.
    @ivar talked_at: time of the last message, if no ping has left since; set by the conversation.
    @ivar blocked_until: end of the time in which the phone sends media, and reads nothing.
    @ivar interval: seconds between two pings, now.
    @ivar timeout: seconds until the phone is given up, now.
    """

    __slots__ = (
        "_next_ping",
        "_out",
        "_paused_at",
        "_probed_until",
        "_queued",
        "_responsiveness",
        "_settings",
        "_silent_from",
        "_silent_since",
        "_void_until",
        "blocked_until",
        "interval",
        "last_heard",
        "quality",
        "talked_at",
        "timeout",
    )

    def __init__(self, settings: PingSettings, now: float, random: Random) -> None:
        """@param random: draws the delay of the first ping."""
        self._settings = settings
        self.quality = Quality()
        self.last_heard = now
        self.blocked_until = now
        self.interval = settings.interval
        self.timeout = settings.timeout
        self._responsiveness = Responsiveness()
        self._next_ping = now + random.uniform(
            settings.initial_delay_min, settings.initial_delay_max
        )
        self._queued = False  # a ping is to be sent, and has not left yet
        self.talked_at = inf
        self._probed_until = _NEVER
        self._out: tuple[Ping, ...] = ()  # pings that may still be answered, the oldest first
        # Pings that left before this do not count: for a time they could not be answered.
        self._void_until = _NEVER
        self._paused_at: float | None = None
        # The first ping since something was heard: when it left, and when its time-out began.
        self._silent_since = now
        self._silent_from = inf

    def is_of(self, responsiveness: Responsiveness, now: float) -> None:
        """
        Note the device of the connection.

        @param responsiveness: the answer times of its connections before.
        """
        self._responsiveness = responsiveness
        responsiveness.back(now, self._settings.timeout)
        self._adapt()

    def ended(self) -> None:
        """Note the end of the connection, where no newer one took its place."""
        silent = self.last_heard <= self._silent_since
        self._responsiveness.connection_ended(self._silent_from if silent else inf)

    def apply(self, settings: PingSettings, now: float) -> None:
        """Apply changed settings."""
        self._settings = settings
        self.interval = settings.interval
        self.timeout = settings.timeout
        self._adapt()
        self._next_ping = min(self._next_ping, now + self.interval)

    @property
    def due(self) -> float:
        """Time of the next thing to do, unless a ping leaves before."""
        due = min(self._next_ping, self._follow_up_at, self._probe_at)
        if self.last_heard <= self._silent_since:
            due = min(due, self._silent_from + self.timeout)
        return due

    def ping_due(self, now: float) -> bool:
        """True once for each ping that is to be sent; not while one waits to leave."""
        if now < self._next_ping and now < self._follow_up_at and now < self._probe_at:
            return False
        if not self._queued and now < self._next_ping and self._probe_at <= now:
            self._probed_until = max(self._probed_until, now) + _PROBE_PERIOD_SECONDS
        self._next_ping = now + self.interval
        if self._queued:
            return False
        self._queued = True
        return True

    def ping_left(self, ping: Ping) -> None:
        """Note that a ping has left for the socket: its time runs."""
        now = ping.left_at
        if self._out:
            if self.last_heard > self._silent_from:
                took = self.last_heard - self._silent_from
                self._responsiveness.answered(now, took, was_silent=False)
            lost, self._out = self._out[: -self._most_out], self._out[-self._most_out :]
            self._lost(lost)
            self.quality.overdue = self._overdue(now)
            self.quality.judge()
            self._adapt()
        self._out += (ping,)
        self.talked_at = inf
        if self._queued:  # else it was sent out of turn
            self._queued = False
            self._next_ping = now + self.interval
        if self.last_heard > self._silent_since or self._silent_from == inf:
            self._silent_since = now
            self._silent_from = max(now, self.blocked_until)
        if self._paused_at is not None or now < self.blocked_until:
            self._void_until = now

    def outstanding(self, text: object) -> Ping | None:
        """The ping whose echo C{text} is, if it may still be answered."""
        return next((ping for ping in self._out if ping.text == text), None)

    def pong(self, ping: Ping, now: float, round_trip: float) -> bool:
        """
        Note the answer to an L{outstanding} ping.

        @param round_trip: in seconds, by the exact clock.
        @return: whether it was a valid sample.
        """
        place = self._out.index(ping)
        lost, self._out = self._out[:place], self._out[place + 1 :]
        self.last_heard = now
        silent_from, self._silent_from = self._silent_from, inf
        self.quality.overdue = self._overdue(now)
        self._lost(lost)
        # Where they disagree, the process was held up.
        agree = abs(round_trip - (now - ping.left_at)) <= _CLOCK_SLACK_SECONDS
        is_sample = agree and ping.left_at > self._void_until
        if is_sample:
            self.quality.answered(round_trip)
            took = max(round_trip, now - silent_from)
            self._responsiveness.answered(now, took, was_silent=silent_from < inf)
        else:
            self.quality.judge()
        self._adapt()
        return is_sample

    def blocked(self, now: float, seconds: float) -> None:
        """Note that media have left: each such frame blocks the phone for so many C{seconds}."""
        self.blocked_until = max(now, self.blocked_until) + seconds
        self._silent_from += seconds
        self._void_until = now

    def reading_paused(self, now: float) -> None:
        """Note that the phone is not read from for a while."""
        self._paused_at = now
        self._void_until = now

    def reading_resumed(self, now: float) -> None:
        """Note that the phone is read from again."""
        if self._paused_at is not None:
            if self.last_heard <= self._silent_since:
                self._silent_from += now - max(self._paused_at, self._silent_since)
            self._paused_at = None

    def is_stale(self, now: float, taken: bool = False) -> bool:
        """
        True when the phone is given up.

        @param taken: whether its kernel has all that was written: only the app is silent, and
            C{ping.timeout} holds.
        """
        timeout = self._settings.timeout if taken else self.timeout
        return (
            now - self._silent_from >= timeout
            and self.last_heard <= self._silent_since
            and self._paused_at is None
        )

    @property
    def _probe_at(self) -> float:
        """Time of the ping behind the last message, unless another leaves before."""
        return max(self.talked_at + PROBE_SECONDS, self._probed_until - _PROBE_CREDIT_SECONDS)

    @property
    def _follow_up_at(self) -> float:
        """Time of the ping that follows an unanswered one; infinite: none does."""
        out = self._out
        if not out or not self._settings.adaptive or out[-1].left_at <= self._void_until:
            return inf
        return out[-1].left_at + self._usual_seconds

    @property
    def _usual_seconds(self) -> float:
        """Time within which a ping is usually answered, in seconds."""
        return max(self._shortest_interval, 2 * (self.quality.srtt or 0.0))

    @property
    def _most_out(self) -> int:
        """Most pings that are out beside the last: as many as leave within a time-out."""
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
        """Number of pings that are out for longer than usual."""
        since = now - self._usual_seconds
        return sum(self._void_until < ping.left_at <= since for ping in self._out)

    def _adapt(self) -> None:
        """Work out the interval and the time-out anew."""
        settings = self._settings
        if not settings.adaptive:
            return
        quality, shortest = self.quality, self._shortest_interval
        # A phone that answers, only late, needs no more pings.
        worse = quality.loss > 0 and quality.grade in (Grade.POOR, Grade.FAILING)
        self.interval = min(settings.interval, self._usual_seconds if worse else inf)
        self.timeout = self._responsiveness.seconds(
            max(MIN_TIMEOUT_SECONDS, TIMEOUT_INTERVALS * shortest, TIMES_SLOWEST * quality.worst),
            settings.timeout,
        )
