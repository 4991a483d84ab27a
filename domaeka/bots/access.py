"""
The values of C{allow=} and C{cooldown=}: who may use a command, and how often.

People are known by channel id and user hash, rooms by channel id: never by a name, which anybody
may take.
"""

from collections.abc import Callable, Iterable
from typing import Final, Literal, TypeAlias, get_args

import msgspec

from domaeka.wire import MAX_NAME_CHARS, Chat, is_name

#: Most calls within the time of a cooldown, and its longest time, in seconds.  Source:
#: docs/bots.md, "Who may, and how often".
MAX_RATE: Final = 1_000_000
MAX_PER_SECONDS: Final = 2_678_400.0

By: TypeAlias = Literal["sender", "room", "all"]


class Allow(msgspec.Struct, frozen=True):
    """
    The people who may use a command: those to whom any of it applies.

    @ivar operators: those in C{bots.operators}.
    @ivar rooms: those in the rooms with these channel ids.
    @ivar people: these, by channel id and user hash.
    @ivar roles: those who hold one of these roles.
    """

    operators: bool = False
    rooms: frozenset[str] = frozenset()
    people: frozenset[tuple[str, str]] = frozenset()
    roles: frozenset[str] = frozenset()

    def __or__(self, other: object) -> "Allow":
        if not isinstance(other, Allow):
            return NotImplemented
        return Allow(
            self.operators or other.operators,
            self.rooms | other.rooms,
            self.people | other.people,
            self.roles | other.roles,
        )

    def __str__(self) -> str:
        """As it is written in a bot, in an order of its own."""
        people = (f"{channel_id}/{user_hash}" for channel_id, user_hash in self.people)
        given = (("room", self.rooms), ("people", people), ("role", self.roles))
        parts = [f"{name}({', '.join(values)})" for name, each in given if (values := sorted(each))]
        return " | ".join((["operators"] if self.operators else []) + parts)

    def includes(
        self, chat: Chat, is_operator: Callable[[Chat], bool], holds: "Holds | None"
    ) -> bool:
        """True for the sender of C{chat}.  What the phone does not know is never right."""
        return (
            (self.operators and is_operator(chat))
            or chat.channel_id in self.rooms
            or (bool(self.people) and (chat.channel_id, chat.user_hash) in self.people)
            or (
                holds is not None
                and any(holds(one, chat.channel_id, chat.user_hash) for one in self.roles)
            )
        )


#: Says if somebody holds a role: its name, the channel id, the user hash.
Holds: TypeAlias = Callable[[str, str | None, str | None], bool]

#: Those in C{bots.operators}.
operators: Final = Allow(operators=True)


def room(*channel_ids: str) -> Allow:
    """
    Those in the rooms with these channel ids.

    @raise ValueError: one is no channel id, or none is given.
    """
    _check_given("room", channel_ids)
    for one in channel_ids:
        _check_channel(one, f"room({one!r:.100})")
    return Allow(rooms=frozenset(channel_ids))


def people(*named: str) -> Allow:
    """
    These people.

    @param named: each C{CHANNEL/HASH}, channel id and user hash.
    @raise ValueError: one is not of that form, or none is given.
    """
    _check_given("people", named)
    found = []
    for one in named:
        channel_id, _, user_hash = one.partition("/")
        where = f"people({one!r:.100})"
        if not user_hash:
            raise ValueError(f"{where}: a person is CHANNEL/HASH, channel id and user hash")
        _check_channel(channel_id, where)
        if not (user_hash.isprintable() and is_name(user_hash)):
            raise ValueError(f"{where}: the user hash is not what a phone sends")
        found.append((channel_id, user_hash))
    return Allow(people=frozenset(found))


def role(*names: str) -> Allow:
    """
    Those who hold one of these roles, which operators give (C{domaeka roles}).

    @raise ValueError: nobody can hold it, or none is given.
    """
    _check_given("role", names)
    for one in names:
        if not (one.isprintable() and is_name(one) and one == one.strip()):
            raise ValueError(f"role({one!r:.100}): is no name of a role")
    return Allow(roles=frozenset(names))


def _check_given(what: str, given: tuple[object, ...]) -> None:
    if not given:
        raise ValueError(f"{what}() needs at least one text: else nobody is meant")
    for one in given:
        if not isinstance(one, str):
            raise TypeError(f"{what}() takes texts, not {type(one).__name__}")


def _check_channel(channel_id: str, where: str) -> None:
    if not (channel_id.isascii() and channel_id.isdigit()) or len(channel_id) > MAX_NAME_CHARS:
        raise ValueError(f"{where}: a channel id is a number; the title of a room is none")


class Cooldown(msgspec.Struct, frozen=True):
    """At most C{rate} calls within C{per} seconds, from the first of them; see L{cooldown}."""

    rate: int
    per: float
    by: By


def cooldown(rate: int, per: float, by: By = "sender") -> Cooldown:
    """
    At most C{rate} calls within C{per} seconds, counted from the first of them.

    @param by: for each C{"sender"} in each room, for each C{"room"}, or for C{"all"} together.
    @raise TypeError: something of a wrong type.
    @raise ValueError: out of range.
    """
    if isinstance(rate, bool) or not isinstance(rate, int):
        raise TypeError(f"cooldown: rate is a number of calls, not {type(rate).__name__}")
    if isinstance(per, bool) or not isinstance(per, int | float):
        raise TypeError(f"cooldown: per is a number of seconds, not {type(per).__name__}")
    if not 1 <= rate <= MAX_RATE:
        raise ValueError(f"cooldown: rate is 1 to {MAX_RATE} calls")
    if not 0 < per <= MAX_PER_SECONDS:
        raise ValueError(f"cooldown: per is above 0 and at most {MAX_PER_SECONDS:.0f} s")
    if by not in get_args(By):
        raise ValueError(f"cooldown: by is {', '.join(map(repr, get_args(By)))}, not {by!r:.50}")
    return Cooldown(rate, float(per), by)


def check_allow(allow: object, operators_only: bool) -> Allow | None:
    """
    The value of C{allow=}, where C{operators_only=} is short for one.

    @raise TypeError: it is of another type.
    @raise ValueError: both are given.
    """
    if allow is None:
        return operators if operators_only else None
    if not isinstance(allow, Allow):
        raise _wrong("allow", allow, (room, people, role), "operators, room(…), people(…), role(…)")
    if operators_only:
        raise ValueError("operators_only is short for allow=operators: give one of them")
    return allow


def check_cooldown(given: object) -> Cooldown | None:
    """The value of C{cooldown=}.  @raise TypeError: it is of another type."""
    if given is not None and not isinstance(given, Cooldown):
        raise _wrong("cooldown", given, (cooldown,), "cooldown(rate, per)")
    return given


def _wrong(
    parameter: str, given: object, makers: Iterable[Callable[..., object]], wanted: str
) -> TypeError:
    hint = "".join(f": it is called, {one.__name__}(…)" for one in makers if one is given)
    return TypeError(f"{parameter}: {wanted}, not {type(given).__name__}{hint}")
