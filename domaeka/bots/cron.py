"""Timetables: the times at which schedules are due, by cron expressions in a time zone."""

from datetime import datetime
from typing import Final
from zoneinfo import ZoneInfo

import msgspec
from cronsim import CronSim, CronSimError

#: Longest expression, in characters.  Source: docs/bots.md, "Sending, schedules and storage".
MAX_EXPRESSION_CHARS: Final = 200
#: Most rooms of a schedule, and most schedules of a bot.  Source: as above.
MAX_SCHEDULE_ROOMS: Final = 100
MAX_SCHEDULES: Final = 100


class Timetable:
    """
    The times of a cron expression of five fields, as Debian's cron reads it: a time that the clock
    leaves out, when summer time begins, is due right behind the gap; one that it shows twice, when
    it ends, is due the first time.  Expressions whose minute or hour begins with a star are due at
    each real time that fits.
    """

    def __init__(self, expression: str, zone: str) -> None:
        """
        @param expression: minute, hour, day of month, month, day of week.
        @param zone: the name of a time zone, as C{"Asia/Seoul"}.
        @raise ValueError: one of them is wrong, or no time is ever due.
        """
        if not isinstance(expression, str) or not isinstance(zone, str):
            raise TypeError("a schedule is a text, and so is its time zone")
        if len(expression) > MAX_EXPRESSION_CHARS:
            raise ValueError(f"a schedule has {MAX_EXPRESSION_CHARS} characters at most")
        fields = expression.split()
        if len(fields) != 5:
            more = ": a schedule is due once a minute at most" if len(fields) == 6 else ""
            raise ValueError(
                f"the schedule {expression!r} has {len(fields)} fields, not five (minute, hour, "
                f"day of month, month, day of week){more}"
            )
        try:
            self.zone = ZoneInfo(zone)
        except (ValueError, OSError, KeyError):  # ZoneInfoNotFoundError is a KeyError
            raise ValueError(
                f"the time zone {zone!r:.100} is not known (a system without zones needs the "
                "package tzdata)"
            ) from None
        self.expression = " ".join(fields)
        try:
            found = self.next(0.0)
        except (CronSimError, ValueError, TypeError, AssertionError) as error:
            raise ValueError(f"the schedule {expression!r} is wrong: {error}") from None
        if found is None:
            raise ValueError(f"the schedule {expression!r} is never due")

    @property
    def name(self) -> str:
        """The expression and its zone."""
        return f"{self.expression} {self.zone.key}"

    def next(self, after: float) -> float | None:
        """The first time behind C{after}; both in seconds since 1970; L{None}: in 50 years none."""
        for due in CronSim(self.expression, datetime.fromtimestamp(after, self.zone)):
            # Of an hour that the clock shows twice the first is meant, which may be over.
            if (found := due.timestamp()) > after:
                return found
        return None

    def latest(self, after: float, until: float) -> float | None:
        """The last time behind C{after}, and up to C{until}; L{None}: there is none."""
        last = self.next(after)
        if last is None or last > until:
            return None
        high = until  # nothing is due between it and C{until}
        while (due := self.next(last)) is not None and due <= until:
            last = due
            middle = (last + high) / 2
            found = self.next(middle)
            if found is not None and found <= until:
                last = found
            else:
                high = middle
        return last

    def local(self, due: float) -> datetime:
        """C{due}, in seconds since 1970, in the time zone."""
        return datetime.fromtimestamp(due, self.zone)


class Schedule(msgspec.Struct, frozen=True, eq=False):
    """
    When, and for which rooms, a function is called.

    @ivar once: of runs that were missed one is made up for.
    """

    times: Timetable
    rooms: tuple[str, ...]
    once: bool

    @classmethod
    def of(cls, expression: str, zone: str, rooms: tuple[str, ...], missed: str) -> "Schedule":
        """@raise ValueError: something is wrong, or too much.  @raise TypeError: no text."""
        if missed not in ("skip", "once"):
            raise ValueError(f'missed: "skip" or "once", not {missed!r:.100}')
        if not all(isinstance(room, str) and room for room in rooms):
            raise TypeError("rooms: each is a text: its channel id")
        if len(rooms) > MAX_SCHEDULE_ROOMS:
            raise ValueError(f"rooms: {MAX_SCHEDULE_ROOMS} at most")
        return cls(Timetable(expression, zone), rooms, missed == "once")

    def equals(self, other: "Schedule | None") -> bool:
        """True if another one is due at the same times."""
        return other is not None and self.times.name == other.times.name
