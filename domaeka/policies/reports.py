"""Messages that a client has acknowledged, and whose delivery report is awaited."""

from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple

from domaeka.policies.outgoing import Outgoing, StatusListener

#: Most messages of an outbox whose delivery report is awaited, and the longest time for which it
#: is, in seconds: a script reports within 30 s, and later while files are sent or it is away.
MAX_UNREPORTED: Final = 1000
REPORT_SECONDS: Final = 300.0


class Unreported(NamedTuple):
    """A message that a client has acknowledged, and whose delivery report is awaited."""

    room: str
    channel_id: str | None
    on_status: StatusListener | None
    acknowledged_at: float


class Reports:
    """
    The messages of an outbox whose reports are awaited, by their numbers.

    Where there are too many, the room that awaits most gives way: the older half of its messages.
    """

    __slots__ = ("_gave_way", "_messages")

    def __init__(self, gave_way: Callable[[str, int], object]) -> None:
        """@param gave_way: called with a room, and how many of its reports are awaited no more."""
        self._gave_way = gave_way
        self._messages: dict[int, Unreported] = {}

    def expect(self, item: Outgoing, now: float) -> None:
        """Await the report on a message that was acknowledged."""
        messages, reply = self._messages, item.reply
        while messages:
            oldest = next(iter(messages))
            if now - messages[oldest].acknowledged_at < REPORT_SECONDS:
                break
            del messages[oldest]
        if len(messages) >= MAX_UNREPORTED:
            self._make_room()
        messages[item.number] = Unreported(reply.room, reply.channel_id, item.on_status, now)

    def _make_room(self) -> None:
        rooms = Counter(message.channel_id or message.room for message in self._messages.values())
        ((room, count),) = rooms.most_common(1)
        numbers = [n for n, m in self._messages.items() if (m.channel_id or m.room) == room]
        given_up = numbers[: (count + 1) // 2]
        for number in given_up:
            del self._messages[number]
        self._gave_way(room, len(given_up))

    def take(self, message_id: int) -> Unreported | None:
        """The message that a report is on; L{None}: none is awaited, or not any more."""
        return self._messages.pop(message_id, None)
