"""Sending unasked: what a bot sends to a room of its own accord, and the receipt for it."""

from collections.abc import Iterable
from typing import Any, Final

import msgspec
from twisted.internet.defer import Deferred

from domaeka.bots.link import Answer, Host, Link
from domaeka.bots.media import MediaItem, blocks, listed, prepare
from domaeka.bots.storage import BotStore
from domaeka.errors import BotTypeError, BotValueError
from domaeka.wire import MediaType

#: Longest time that a reply may wait for a phone, in seconds: as over the API.
MAX_TTL_SECONDS: Final = 31_536_000


def check_ttl(ttl: object) -> None:
    """@raise TypeError: no number.  @raise ValueError: not above 0, or too long."""
    if ttl is None:
        return
    if isinstance(ttl, bool) or not isinstance(ttl, int | float):
        raise BotTypeError(f"ttl: a number of seconds, not {type(ttl).__name__}")
    if not 0 < ttl <= MAX_TTL_SECONDS:
        raise BotValueError(f"ttl: above 0 and at most {MAX_TTL_SECONDS} s")


class Receipt(msgspec.Struct, frozen=True):
    """
    A message that waits for its phone.

    @ivar id: its id, by which the API knows it, too.
    """

    id: str
    _link: Link

    def status(self) -> Answer[str | None]:
        """
        Its delivery status, as of L{Context.reply}, or C{"queued"}; L{None}: of more than 10,000
        messages since, or a restart, it is not known any more.
        """
        return self._link.ask("status()", lambda host: host.status(self.id))


class Speaker:
    """
    The part of a bot that needs no message: it sends unasked, and keeps values.

    @ivar names: the bot names of the phones that it serves; empty: all.
    @ivar link: its link to the server that serves it.
    """

    def __init__(self, name: str, names: frozenset[str]) -> None:
        self.name = name
        self.names = names
        self.link = Link()

    @property
    def store(self) -> BotStore:
        """What the bot keeps."""
        return BotStore(self.link, self.name)

    def send(
        self, room: str, text: str, *, device: str | None = None, ttl: float | None = None
    ) -> Answer[Receipt]:
        """
        Send C{text} to a room, unasked: over the phone on which the room was last heard, among
        those whose bot names are in C{names}.

        @param room: its channel id; or its title, where one room alone has it.
        @param device: the device id of another phone.
        @param ttl: as of L{Context.reply<domaeka.bots.api.Context.reply>}.
        @return: await it, or in a thread call C{result()}: the L{Receipt}, once the message waits
            for the phone.
        @raise NoServer: no server serves the bot.
        @raise NoRoom: no such room was heard.
        @raise AmbiguousRoom: several rooms have this title.
        @raise SendRefused: room or phone is not approved, or too much waits.
        @raise TypeError: something is of a wrong type.
        @raise ValueError: the text is empty, or C{ttl} is out of range.
        """
        if not isinstance(text, str):
            raise BotTypeError(f"a message is a text, not {type(text).__name__}")
        if not text:
            raise BotValueError("a message is not empty")
        _check_place(room, device, ttl)
        return self.link.ask("send()", lambda host: self._send(host, room, (text,), device, ttl))

    def send_media(
        self,
        room: str,
        items: MediaItem | Iterable[MediaItem],
        wait_ms: int | None = None,
        *,
        kind: MediaType | None = None,
        format: str | None = None,
        device: str | None = None,
        ttl: float | None = None,
    ) -> Answer[Receipt]:
        """
        Send files to a room, unasked: as L{send}, and as
        L{Context.reply_media<domaeka.bots.api.Context.reply_media>}.
        """
        _check_place(room, device, ttl)
        found = listed(items)
        files: Any = (found, wait_ms, kind, format)
        ready = None if any(map(blocks, found)) else tuple(prepare(*files))

        def begin(host: Host) -> "Deferred[Receipt]":
            if ready is not None:
                return self._send(host, room, ready, device, ttl)
            reading = host.call_in_thread(prepare, *files)
            return reading.addCallback(
                lambda media: self._send(host, room, tuple(media), device, ttl)
            )

        return self.link.ask("send_media()", begin)

    def _send(
        self, host: Host, room: str, contents: Any, device: str | None, ttl: float | None
    ) -> "Deferred[Receipt]":
        sent = host.send(self.names, room, contents, device, ttl)
        return sent.addCallback(Receipt, self.link)


def _check_place(room: object, device: object, ttl: object) -> None:
    if not isinstance(room, str) or not isinstance(device, str | None):
        raise BotTypeError("a room is a text, its channel id; so is a device")
    if not room:
        raise BotValueError("a room is not empty: give its channel id")
    check_ttl(ttl)
