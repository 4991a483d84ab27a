"""Test doubles for the parts of the server: one for each interface of L{domaeka.interfaces}."""

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from twisted.internet.defer import Deferred, succeed

from domaeka.interfaces import (
    Approval,
    ApprovalListener,
    ChatLine,
    DeviceFacts,
    DeviceKey,
    Origin,
    Resumption,
    RoomKey,
    StatusListener,
)
from domaeka.wire import Chat, Media, Reply

_STANDARD_KEY: Final = DeviceKey("가게봇", "a1b2c3d4e5f60718")


class FakeDevices:
    """
    Devices in a dict.

    @ivar known: the approval of each device; change it at will.
    @ivar entered: the facts with which each device was last entered.
    @ivar leads: the lead of each device's clock, in seconds, where it was measured.
    @ivar usual_lead: that of all others; L{None}: it is not known.
    @ivar last_heard: the time when each disconnected device was last heard.
    @ivar store_is_known: L{False}: the approval of a device that is not known cannot be told yet.
    """

    def __init__(
        self,
        first: Approval = Approval.APPROVED,
        listener: ApprovalListener | None = None,
    ) -> None:
        """
        @param first: the approval of new devices.
        @param listener: called when an operator decides.
        """
        self.known: dict[DeviceKey, Approval] = {}
        self.entered: dict[DeviceKey, DeviceFacts] = {}
        self.last_heard: dict[DeviceKey, float] = {}
        self.leads: dict[DeviceKey, float] = {}
        self.usual_lead: float | None = 0.0
        self.store_is_known = True
        self._first = first
        self._listener = listener

    def approval(self, key: DeviceKey) -> Approval | None:
        """Approval of a device; L{None}: it is not known."""
        return self.known.get(key)

    def enter(self, key: DeviceKey, facts: DeviceFacts) -> Approval | None:
        """A device has authenticated."""
        if key not in self.known and not self.store_is_known:
            return None
        self.entered[key] = facts
        return self.known.setdefault(key, self._first)

    def heard(self, key: DeviceKey, ended: float | None = None) -> None:
        """A connected device was heard; C{ended}: when, and its connection has ended."""
        if ended is not None:
            self.last_heard[key] = ended

    def clock_lead(self, key: DeviceKey) -> float | None:
        """Lead of a device's clock, in seconds; L{None}: it is not known."""
        return self.leads.get(key, self.usual_lead)

    def clock_measured(self, key: DeviceKey, lead: float) -> None:
        """A device's clock was measured."""
        self.leads[key] = lead

    def set_approval(self, key: DeviceKey, approval: Approval) -> "Deferred[None]":
        """Record an operator's decision, which is in force at once."""
        self.known[key] = approval
        if self._listener is not None:
            self._listener(key, approval)
        return succeed(None)


class FakeRooms:
    """
    Rooms in a dict.

    @ivar known: the approval of each room; change it at will.
    @ivar heard: the device, name and kind with which each room was last heard.
    @ivar answerable: the last report on each room.
    """

    def __init__(self, first: Approval = Approval.APPROVED) -> None:
        """@param first: the approval of new rooms."""
        self.known: dict[RoomKey, Approval] = {}
        self.heard: dict[RoomKey, tuple[DeviceKey, str, bool]] = {}
        self.answerable: dict[RoomKey, bool] = {}
        self._first = first

    def enter(self, key: RoomKey, device: DeviceKey, name: str, is_group: bool) -> bool:
        """A chat message came from a room.  @return: True if bots may answer it."""
        self.heard[key] = (device, name, is_group)
        return self.known.setdefault(key, self._first) is Approval.APPROVED

    def reported(self, key: RoomKey, device: DeviceKey, ok: bool) -> None:
        """The chat app of C{device} took a message for a room, or cannot answer there."""
        self.answerable[key] = ok

    def set_approval(self, key: RoomKey, approval: Approval) -> "Deferred[None]":
        """Record an operator's decision, which is in force at once."""
        self.known[key] = approval
        return succeed(None)


class FakeResumption(NamedTuple):
    """Result of showing a session token: a new token, or L{None}."""

    token: str | None
    key_id: str


class FakeSessions:
    """
    Session tokens in a dict; each is valid until its successor has been shown.

    @ivar live: the device of each token.
    @ivar addresses: the address to which each was issued; change it at will.
    @ivar ended: devices and tokens of the connections that have ended, oldest first.
    """

    def __init__(self) -> None:
        self.live: dict[str, DeviceKey] = {}
        self.ended: list[tuple[DeviceKey, str]] = []
        self._key_ids: dict[str, str] = {}
        self.addresses: dict[str, str] = {}
        self._made = 0

    def issue(self, key: DeviceKey, address: str, key_id: str) -> "Deferred[str]":
        """A device has authenticated: issue a token at once."""
        self._made += 1
        token = f"token-{self._made}"
        self.live[token] = key
        self._key_ids[token] = key_id
        self.addresses[token] = address
        return succeed(token)

    def resume(
        self, token: object, key: DeviceKey, address: str, key_id: str | None = None
    ) -> "Deferred[Resumption]":
        """A device shows a token: issue a new one at once, if the token is its own."""
        if not isinstance(token, str) or self.live.get(token) != key:
            return succeed(FakeResumption(None, ""))
        if key_id is None and self.addresses[token] != address:
            return succeed(FakeResumption(None, ""))
        for other in [other for other, whose in self.live.items() if whose == key]:
            if other != token:
                del self.live[other]
        by = self._key_ids[token] if key_id is None else key_id
        fresh = self.issue(key, address, by)
        resumed: Deferred[Resumption] = fresh.addCallback(lambda token: FakeResumption(token, by))
        return resumed

    def connection_ended(self, key: DeviceKey, token: str) -> None:
        """The connection to which a token was given has ended."""
        self.ended.append((key, token))


class FakeChatLog:
    """A chat log in a list, oldest first."""

    def __init__(self) -> None:
        self.lines: list[ChatLine] = []

    def append(self, line: ChatLine) -> None:
        self.lines.append(line)


class FakeOrigin:
    """
    A phone that bots answer.

    @ivar answers: all answers, oldest first.
    @ivar done: the messages that need no further answer.
    """

    def __init__(
        self,
        key: DeviceKey = _STANDARD_KEY,
        description: Mapping[str, str] | None = None,
    ) -> None:
        """@param description: the phone's description for operators."""
        self.answers: list[Reply] = []
        self.done: list[Chat] = []
        self._key = key
        self._description = description or {"version": "3.3.3"}

    @property
    def key(self) -> DeviceKey:
        """The phone's device."""
        return self._key

    @property
    def texts(self) -> list[str]:
        """The answers that are texts."""
        return [reply.content for reply in self.answers if isinstance(reply.content, str)]

    @property
    def media(self) -> list[Media]:
        """The answers that are files."""
        return [reply.content for reply in self.answers if isinstance(reply.content, Media)]

    def send(
        self, reply: Reply, ttl: float | None = None, on_status: StatusListener | None = None
    ) -> None:
        self.answers.append(reply)

    def message_done(self, chat: Chat) -> None:
        self.done.append(chat)

    def describe(self) -> Mapping[str, str]:
        """The phone's description for operators."""
        return self._description


class FakeDispatcher:
    """
    A single function in place of the bots.

    @ivar submitted: all messages with their phones, oldest first.
    @ivar held: those that are not answered yet.
    """

    def __init__(self, answer: Callable[[Chat], str | Media | None], hold: bool = False) -> None:
        """
        @param answer: returns the reply to a message, or L{None}.
        @param hold: True if messages wait for L{release}.
        """
        self.submitted: list[tuple[Chat, Origin]] = []
        self.held: list[tuple[Chat, Origin]] = []
        self.hold = hold
        self._answer = answer

    def submit(self, chat: Chat, origin: Origin) -> None:
        """Answer at once, or hold the message."""
        self.submitted.append((chat, origin))
        self.held.append((chat, origin))
        if not self.hold:
            self.release()

    def release(self) -> None:
        """Answer all messages that are held, in order."""
        held, self.held = self.held, []
        for chat, origin in held:
            content = self._answer(chat)
            if content is not None:
                bot_name = origin.key.bot_name
                origin.send(Reply(chat.room, chat.channel_id, bot_name, content))
            origin.message_done(chat)
