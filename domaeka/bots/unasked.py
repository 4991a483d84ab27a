"""Messages that nobody has asked for: a bot names a room, and its phone is found."""

from collections.abc import Callable, Iterable
from typing import Any, Final, NoReturn, TypeVar

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.python.failure import Failure

from domaeka.bots.api import Bot, Runtime
from domaeka.bots.schedules import Schedules
from domaeka.errors import AmbiguousRoom, NoRoom, SendRefused
from domaeka.interfaces import (
    REFUSED,
    Approval,
    Destination,
    Directory,
    KeptValues,
    KnownRoom,
    MessageRefused,
    NotSent,
    Priority,
    RoomBook,
    RoomKey,
    room_without_id,
)
from domaeka.pools import Pool
from domaeka.wire import Media, is_channel_id

#: Longest time that calls wait for the store to be read, in seconds.
READY_SECONDS: Final = 10.0

_T = TypeVar("_T")


class BotHost:
    """A server for its bots (L{domaeka.bots.link.Host}): it links them, sends, and stores."""

    def __init__(
        self,
        runtime: Runtime,
        reactor: Any,
        directory: Directory,
        rooms: RoomBook,
        values: KeptValues,
        schedules: Schedules,
        is_read: bool = False,
        gave_way: Callable[[Pool, object, int], object] = lambda pool, claimant, count: None,
    ) -> None:
        """
        @param is_read: the store has been read; else L{store_read} is called once it has.
        @param gave_way: called when something that is shared has given way.
        """
        self.gave_way = gave_way
        self.hand_over = runtime.hand_over
        self.in_reactor_thread = runtime.in_reactor_thread
        self._call_in_thread = runtime.call_in_thread
        self._reactor = reactor
        self._directory = directory
        self._rooms = rooms
        self.values = values
        self.schedules = schedules
        self._is_read = is_read
        self._waiting: list[Deferred[None]] | None = None if is_read else []
        self._deadline: Any = None

    # For the dispatcher

    def start(self) -> None:
        """Begin to wait for the store."""
        if self._waiting is not None:
            self._deadline = self._reactor.callLater(READY_SECONDS, self._go_on)

    def store_read(self) -> None:
        """The store has been read: the rooms are known."""
        self._is_read = True
        self._go_on()

    def link(self, bots: Iterable[Bot]) -> None:
        """Serve bots, and those that they include."""
        for bot in bots:
            for each in bot.handlers.bots():
                each.link.attach(self)

    def unlink(self, bots: Iterable[Bot], kept: Iterable[Bot] = ()) -> None:
        """Serve bots no more, nor those that they include, but for C{kept}."""
        still = {each for bot in kept for each in bot.handlers.bots()}
        for bot in bots:
            for each in bot.handlers.bots():
                if each not in still:
                    each.link.detach(self)

    def close(self) -> None:
        """Let nobody wait any more, and call no schedules."""
        self.schedules.serve(())
        self._go_on()

    def _go_on(self) -> None:
        """Nobody has to wait any more."""
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()
        waiting, self._waiting = self._waiting, None
        for one in waiting or ():
            one.callback(None)

    # For links

    def call_in_thread(self, function: Callable[..., _T], *args: Any) -> "Deferred[_T]":
        """Call a function that may block."""
        return self._call_in_thread(function, *args)

    def when_ready(self) -> "Deferred[None]":
        """See L{domaeka.bots.link.Host}."""
        if self._waiting is None:
            return succeed(None)
        ready: Deferred[None] = Deferred()
        self._waiting.append(ready)
        return ready

    def send(
        self,
        bot_names: frozenset[str],
        room: str,
        contents: tuple[str | Media, ...],
        device: str | None,
        ttl: float | None,
    ) -> "Deferred[str]":
        """
        Send a message to a room, over the phone on which it was last heard.

        @return: its id.
        @raise BotError: it cannot be sent.
        """
        record = self._find(bot_names or frozenset(self._rooms.bot_names()), room, device)
        room_id = record.key.room_id
        channel_id = room_id if is_channel_id(room_id) else None  # no phone knows it
        to = Destination(record.key.bot_name, device, record.name, channel_id)
        sent: Deferred[Any] = maybeDeferred(
            self._directory.send, to, contents, ttl, Priority.NORMAL
        )
        return sent.addErrback(_refused)

    def status(self, message_id: str) -> "Deferred[str | None]":
        """See L{domaeka.bots.link.Host}."""
        return maybeDeferred(self._directory.message, message_id).addCallback(_status)

    def _find(self, bot_names: frozenset[str], room: str, device: str | None) -> KnownRoom:
        """
        A room by its channel id; or by a title that one room alone has, those that an operator has
        refused apart.  Strangers choose titles: one that looks like a channel id is none.

        @raise BotError: there is none.
        """
        if is_channel_id(room):
            by_id = [one for name in bot_names if (one := self._rooms.record(RoomKey(name, room)))]
            if by_id:
                return _best(by_id, device)
        else:
            found = [one for name in bot_names for one in self._rooms.named(name, room)]
            meant = [one for one in found if one.approval not in REFUSED]
            # A channel id is one room, by whatever phones it is heard; a title is one for each bot.
            places = {
                one.key.room_id if is_channel_id(one.key.room_id) else one.key for one in meant
            }
            if len(places) > 1:
                own = room_without_id(meant, device)
                if own is not None:
                    return own
                raise AmbiguousRoom(tuple(sorted({one.key.room_id for one in meant})))
            approved = [one for one in meant if one.approval is Approval.APPROVED]
            if approved:
                return _best(approved, device)
            if found:
                raise SendRefused(NotSent.NOT_APPROVED, "the room is not approved")
        if not self._is_read:
            raise SendRefused("NOT_READY", "the store has not been read yet: no room is known")
        raise NoRoom("no phone of this bot has heard a room with this channel id or title")


def _best(found: list[KnownRoom], device: str | None) -> KnownRoom:
    """Of one room, as several phones have it: heard on C{device}, approved, the latest."""

    def rank(one: KnownRoom) -> tuple[bool, bool, float]:
        on_it = device is not None and one.device is not None and one.device.device_id == device
        return on_it, one.approval is Approval.APPROVED, one.last_heard or 0.0

    return max(found, key=rank)


def _refused(failure: Failure) -> NoReturn:
    failure.trap(MessageRefused)  # type: ignore[no-untyped-call]
    assert isinstance(failure.value, MessageRefused)
    raise SendRefused(failure.value.why, str(failure.value)) from None


def _status(message: Any) -> str | None:
    return None if message is None else str(message.state)
