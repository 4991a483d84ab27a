"""
Searches of listeners' patterns in what people write, in bounded time.

A regular expression may take hours on a text that somebody has made for it, and holds up all else
meanwhile.  The search is broken off by a timer of processor time, whose signal Python's C{re} looks
for as it goes.
"""

import re
import signal
from collections.abc import Callable
from math import inf
from threading import current_thread, main_thread
from types import FrameType
from typing import Any, Final

from twisted.logger import Logger

from domaeka.bots.commands import SEARCHED_CHARS, Command
from domaeka.bots.fair_queue import Place
from domaeka.pools import Pool

#: Longest search of a pattern in a message, in seconds of processor time.  Source: docs/bots.md,
#: "Handlers".
SEARCH_SECONDS: Final = 0.03
#: A pattern is not searched for in what a person of a phone writes for this time, in seconds, after
#: a search was broken off.
AVOID_SECONDS: Final = 60.0
#: Searches for a pattern that are broken off in a room within that time; then the room's messages
#: are not searched.
MAX_OF_A_ROOM: Final = 3
#: Searches for a pattern that are broken off within that time; then nobody's messages are searched
#: until it is over: they would take more than 0.5 % of the time.
MAX_BROKEN_OFF: Final = 10
#: Most people and rooms that are remembered for it; the first one gives way.
MAX_AVOIDED: Final = 1000

_log = Logger()


class _BrokenOff(BaseException):
    """A search has taken too long."""


_is_searching = False


def _timer_fired(number: int, frame: FrameType | None) -> None:
    if _is_searching:
        raise _BrokenOff


def _can_break_off() -> bool:
    """True in the main thread, if nobody else uses the timer."""
    if not hasattr(signal, "setitimer") or current_thread() is not main_thread():
        return False
    handler = signal.getsignal(signal.SIGVTALRM)
    if handler is _timer_fired:
        return True
    if handler is not signal.SIG_DFL:
        return False
    signal.signal(signal.SIGVTALRM, _timer_fired)
    return True


def search(pattern: re.Pattern[str], text: str, seconds: float = SEARCH_SECONDS) -> bool | None:
    """
    Search for a pattern in the first L{SEARCHED_CHARS} characters of a text.

    Outside of the main thread, and where a bot uses the timer C{ITIMER_VIRTUAL} for itself, the
    search takes as long as it takes.

    @param seconds: of processor time, at most.
    @return: True if it was found; L{None}: the search was broken off.
    """
    global _is_searching
    if not _can_break_off():
        return pattern.search(text, 0, SEARCHED_CHARS) is not None
    try:
        _is_searching = True
        try:
            signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
            return pattern.search(text, 0, SEARCHED_CHARS) is not None
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
            _is_searching = False
    except _BrokenOff:
        _is_searching = False
        return None


class Searches:
    """Searches in what people write, and whose messages are not searched for a while."""

    def __init__(
        self,
        seconds: Callable[[], float],
        gave_way: Callable[[Pool, object, int], object] = lambda pool, claimant, count: None,
        search: Callable[[re.Pattern[str], str], bool | None] = search,
    ) -> None:
        """
        @param seconds: the time now, in seconds.
        @param gave_way: called when a message, or a person's messages, are not searched.
        @param search: as L{search}.
        """
        self._seconds = seconds
        self._gave_way = gave_way
        self._search = search
        # By function and by person or room: until when, and how many; the first one first.
        self._avoided: dict[Any, tuple[float, int]] = {}
        # By function: since when searches that were broken off are counted, and how many.
        self._broken_off: dict[Command, tuple[float, int]] = {}

    def keep(self, commands: Callable[[Command], bool]) -> None:
        """Forget all functions but those of which C{commands} is true."""
        self._broken_off = {one: two for one, two in self._broken_off.items() if commands(one)}
        self._avoided = {one: two for one, two in self._avoided.items() if commands(one[0])}

    def finds(self, pattern: re.Pattern[str], text: str, place: Place) -> bool:
        """
        True if a pattern is found in a message.

        @param place: of the message; its command is the function whose pattern it is.
        """
        function: Any = place.command
        if self._broken_off and self._is_avoided(function, place):
            return False
        found = self._search(pattern, text)
        if found is None:
            self._was_broken_off(function, place)
        return bool(found)

    def _is_avoided(self, function: Command, place: Place) -> bool:
        now = self._seconds()
        since, times = self._broken_off.get(function, (-inf, 0))
        if now >= since + AVOID_SECONDS:
            # The last person may be avoided as long again.
            if times and now >= since + 2 * AVOID_SECONDS:
                del self._broken_off[function]
        elif times >= MAX_BROKEN_OFF:
            return True
        for key, most in _claims(function, place).items():
            until, count = self._avoided.get(key, (-inf, 0))
            if now < until and count >= most:
                return True
        return False

    def _was_broken_off(self, function: Command, place: Place) -> None:
        now = self._seconds()
        since, times = self._broken_off.get(function, (now, 0))
        if now >= since + AVOID_SECONDS:
            since, times = now, 0
        self._broken_off[function] = since, times + 1
        for key in _claims(function, place):
            until, count = self._avoided.pop(key, (-inf, 0))
            if now >= until:
                count = 0
            if len(self._avoided) >= MAX_AVOIDED:
                del self._avoided[next(iter(self._avoided))]
            self._avoided[key] = now + AVOID_SECONDS, count + 1
        self._gave_way(Pool.BOT_PATTERNS, place, 1)
        if not times:
            _log.warn(
                "the pattern of {command} takes more than {held_seconds:.2f} s on what somebody "
                "wrote: it is not searched for in what that person writes for a while ({place})",
                command=str(function),
                held_seconds=SEARCH_SECONDS,
                place=function.place,
            )


def _claims(function: Any, place: Place) -> dict[Any, int]:
    """A room and a person of a phone, with the number of their searches that may be broken off."""
    phone, room_id, who, _ = place
    # Where a phone knows nobody, the room is its people.
    return {(function, phone, (room_id,)): MAX_OF_A_ROOM, (function, phone, who): 1}
