"""Retries: back-off between connections, and circuit breakers around calls."""

from collections import deque
from collections.abc import Callable, Hashable
from enum import IntEnum
from itertools import count
from math import inf
from typing import Final

from domaeka.errors import DomaekaError

#: Time for which failures count, in seconds.  Source: docs/bots.md, "Breakers".
WINDOW_SECONDS: Final = 60.0
#: Limits of the delay before an attempt to connect, in seconds: of the first one, and of all
#: others where the server cannot be reached, and where it refuses.  Source: docs/protocol.md,
#: "Reconnecting".
BASE_DELAY_SECONDS: Final = 2.0
MAX_UNREACHABLE_SECONDS: Final = 8.0
MAX_REFUSED_SECONDS: Final = 60.0
#: A connection that lasts this long ends a row of tries, in seconds.  Source: as above.
SETTLED_SECONDS: Final = 30.0
#: Tries that keep half of their delay, so that the first ones are not made at once.
_EQUAL_JITTER_TRIES: Final = 2
#: Doublings after which any delay is above any limit; keeps the power finite.
_MAX_DOUBLINGS: Final = 32


class Backoff:
    """
    Exponential back-off with jitter between tries to connect.

    The limit doubles with each try.  The first two tries wait half of it and a random part of
    the other half; later ones a random part of the whole, so that a crowd spreads out.
    """

    __slots__ = ("_connected_at", "_longest", "_random", "_seconds", "_tries")

    def __init__(
        self,
        seconds: Callable[[], float],
        random: Callable[[], float],
        longest: float,
    ) -> None:
        """
        @param seconds: the time now, in seconds.
        @param random: a number from 0 up to, but not including, 1.
        @param longest: limit that is never exceeded, in seconds.
        """
        self._seconds = seconds
        self._random = random
        self._longest = longest
        self._tries = 0
        self._connected_at: float | None = None

    @property
    def settled(self) -> bool:
        """True while there is a connection that has lasted."""
        made_at = self._connected_at
        return made_at is not None and self._seconds() - made_at >= SETTLED_SECONDS

    def successor(self) -> "Backoff":
        """Back-off for a connection beside this one, with as many tries counted."""
        successor = Backoff(self._seconds, self._random, self._longest)
        successor._tries = self._tries
        return successor

    def next_delay(self) -> float:
        """Count the next try.  @return: seconds to wait before it."""
        tries = self._tries
        self._tries = tries + 1
        limit: float = min(self._longest, BASE_DELAY_SECONDS * 2 ** min(tries, _MAX_DOUBLINGS))
        if tries < _EQUAL_JITTER_TRIES:
            return limit / 2 * (1 + self._random())
        return limit * self._random()

    def connected(self) -> None:
        """Note that a try led to a connection."""
        self._connected_at = self._seconds()

    def lost(self) -> None:
        """Note the end of the connection.  If it had lasted, tries are counted anew."""
        if self.settled:
            self._tries = 0
        self._connected_at = None


class BreakerState(IntEnum):
    """State of a breaker; the numbers are those of the metric."""

    CLOSED = 0
    HALF_OPEN = 1  # one call at a time, as a probe
    OPEN = 2


# Looking up a member of an enumeration costs more than the rest of a good call.
_CLOSED: Final = BreakerState.CLOSED
_HALF_OPEN: Final = BreakerState.HALF_OPEN
_OPEN: Final = BreakerState.OPEN


class BreakerOpen(DomaekaError):
    """
    A call was not made, because too many before it failed.

    @ivar name: of the breaker.
    @ivar opening: number of times that the breaker had opened.
    """

    def __init__(self, name: str, opening: int) -> None:
        super().__init__(f"{name} has failed too often: not called for a while")
        self.name = name
        self.opening = opening


class Breaker:
    """
    Circuit breaker.

    Closed, it lets every call through.  A failure counts for L{WINDOW_SECONDS}, and each success
    makes good the oldest one that counts.  It opens when C{failure_threshold} of them count: that
    many in a row, or that many more than there were successes.  A call that succeeds slowly has
    failed.

    Open, it refuses every call until C{recovery_timeout} has passed.  Then it is half open: one
    call, the probe, is let in, and its outcome closes the breaker or opens it again.  A probe
    that takes longer than C{recovery_timeout} is given up for the next one.

    Each change of state, and each probe, starts a new generation.  The permits of older ones
    change nothing: a late success closes nothing, a late failure opens nothing.

    Not for use from several threads at once.
    """

    __slots__ = (
        "_failures",
        "_generation",
        "_next_generation",
        "_recovery_timeout",
        "_seconds",
        "_since",
        "_slow",
        "_state",
        "_threshold",
        "name",
        "opening",
    )

    def __init__(
        self,
        name: str,
        seconds: Callable[[], float],
        failure_threshold: int,
        recovery_timeout: float,
        slow: float,
        next_generation: Callable[[], int] | None = None,
    ) -> None:
        """
        @param name: what is guarded.
        @param seconds: the time now, in seconds.
        @param failure_threshold: failures that open it, 1 or more.
        @param recovery_timeout: how long it stays open, in seconds.
        @param slow: a call that takes this long has failed, in seconds.
        @param next_generation: gives ascending numbers, for breakers that share their permits: one
            of any of them is good for each whose last change was before it.
        """
        self.name = name
        self.opening = 0
        self._seconds = seconds
        self._threshold = failure_threshold
        self._recovery_timeout = recovery_timeout
        self._slow = slow
        self._state = _CLOSED
        self._next_generation = next_generation or count(1).__next__
        self._generation = 0
        # When, and whose; fewer than the threshold.
        self._failures: deque[tuple[float, tuple[Hashable, ...]]] = deque()
        self._since = 0.0  # when it opened, or when the probe began

    @property
    def state(self) -> BreakerState:
        """State for the next call: half open as soon as C{recovery_timeout} has passed."""
        if self._state is _OPEN and self._waited():
            return _HALF_OPEN
        return self._state

    @property
    def admits(self) -> bool:
        """True if the next call may be made."""
        return self._state is _CLOSED or self._waited()

    @property
    def is_settled(self) -> bool:
        """
        True if a new breaker would do as well: it is closed, and no failure counts; or it has been
        open, and for L{WINDOW_SECONDS} longer than it had to be nobody has tried.
        """
        now = self._seconds()
        if self._state is _CLOSED:
            return not self._failures or self._failures[-1][0] <= now - WINDOW_SECONDS
        return now - self._since >= self._recovery_timeout + WINDOW_SECONDS

    def ignore_before(self, generation: int) -> None:
        """Let no permit count that is older: those of a breaker that was here before."""
        self._generation = generation

    def begin(self) -> int:
        """
        Begin a call.

        @return: its permit, for exactly one of L{succeeded}, L{failed} and L{dropped}.
        @raise BreakerOpen: the call is not to be made.
        """
        if self._state is not _CLOSED:
            if not self._waited():
                raise BreakerOpen(self.name, self.opening)
            self._enter(_HALF_OPEN)
        return self._generation

    def succeeded(self, permit: int, took: float) -> None:
        """Note a call that succeeded, and C{took} so many seconds."""
        if took >= self._slow:
            self.failed(permit)
        elif self._state is _CLOSED:
            if self._failures and permit >= self._generation:
                self._failures.popleft()
        elif permit >= self._generation and not self._waited():
            self._enter(_CLOSED)

    def failed(self, permit: int, *whose: Hashable) -> None:
        """
        Note a call that failed.

        @param whose: by whom, and where: of failures that have one of these in common one counts,
            so that none of them opens it alone.
        """
        if permit < self._generation:
            return
        if self._state is _HALF_OPEN:
            if not self._waited():
                self._open()
            return
        now = self._seconds()
        failures = self._failures
        while failures and failures[0][0] <= now - WINDOW_SECONDS:
            failures.popleft()
        if whose and any(one in before for _, before in failures for one in whose):
            return
        failures.append((now, whose))
        if len(failures) >= self._threshold:
            self._open()

    def dropped(self, permit: int) -> None:
        """Note a call that was broken off: it does not count; a probe makes way for another."""
        if permit >= self._generation and self._state is _HALF_OPEN:
            self._generation = self._next_generation()
            self._since = -inf

    def _open(self) -> None:
        self.opening += 1
        self._enter(_OPEN)

    def _enter(self, state: BreakerState) -> None:
        self._state = state
        self._generation = self._next_generation()
        self._failures.clear()
        self._since = self._seconds()

    def _waited(self) -> bool:
        """True when the time of this state is over."""
        return self._seconds() - self._since >= self._recovery_timeout
