"""Stand-ins for the parts of the server: one for each interface of L{domaeka.interfaces}."""

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
)
from domaeka.messages import Chat, Media, Reply
from domaeka.policies.outbox import FateListener

_STANDARD_KEY: Final = DeviceKey("가게봇", "a1b2c3d4e5f60718")


class FakeDevices:
    """
    Devices in a dict.

    @ivar known: what each one is; change it at will.
    @ivar entered: the facts with which each was entered last.
    @ivar store_is_known: L{False}: nobody can say anything yet of those that are not known.
    """

    def __init__(
        self,
        first: Approval = Approval.APPROVED,
        listener: ApprovalListener | None = None,
    ) -> None:
        """
        @param first: what a new device becomes.
        @param listener: called at each operator's decision.
        """
        self.known: dict[DeviceKey, Approval] = {}
        self.entered: dict[DeviceKey, DeviceFacts] = {}
        self.store_is_known = True
        self._first = first
        self._listener = listener

    def approval(self, key: DeviceKey) -> Approval | None:
        """What a device is, or L{None}."""
        return self.known.get(key)

    def enter(self, key: DeviceKey, facts: DeviceFacts) -> Approval | None:
        """A device's signature held."""
        if key not in self.known and not self.store_is_known:
            return None
        self.entered[key] = facts
        return self.known.setdefault(key, self._first)

    def set_approval(self, key: DeviceKey, approval: Approval) -> "Deferred[None]":
        """An operator's decision, in force at once."""
        self.known[key] = approval
        if self._listener is not None:
            self._listener(key, approval)
        return succeed(None)


class FakeRooms:
    """
    Rooms in a dict.

    @ivar known: what each one is; change it at will.
    @ivar heard: the device, name and kind with which each was heard last.
    """

    def __init__(self, first: Approval = Approval.APPROVED) -> None:
        """@param first: what a new room becomes."""
        self.known: dict[RoomKey, Approval] = {}
        self.heard: dict[RoomKey, tuple[DeviceKey, str, bool]] = {}
        self._first = first

    def enter(self, key: RoomKey, device: DeviceKey, name: str, is_group: bool) -> bool:
        """Chat was heard in a room.  @return: whether it is to be answered."""
        self.heard[key] = (device, name, is_group)
        return self.known.setdefault(key, self._first) is Approval.APPROVED

    def set_approval(self, key: RoomKey, approval: Approval) -> "Deferred[None]":
        """An operator's decision, in force at once."""
        self.known[key] = approval
        return succeed(None)


class FakeResumption(NamedTuple):
    """What a session token was worth: the fresh one, or L{None}."""

    token: str | None
    key_id: str


class FakeSessions:
    """
    Session tokens in a dict, good for ever and for one use each.

    @ivar live: whose each token is.
    @ivar ended: the devices and tokens whose connections have ended, oldest first.
    """

    def __init__(self) -> None:
        self.live: dict[str, DeviceKey] = {}
        self.ended: list[tuple[DeviceKey, str]] = []
        self._key_ids: dict[str, str] = {}
        self._made = 0

    def issue(self, key: DeviceKey, key_id: str) -> "Deferred[str]":
        """A device proved itself: a token at once."""
        self._made += 1
        token = f"token-{self._made}"
        self.live[token] = key
        self._key_ids[token] = key_id
        return succeed(token)

    def resume(
        self, token: object, key: DeviceKey, key_id: str | None = None
    ) -> "Deferred[Resumption]":
        """A device showed a token: a fresh one at once, if it was its own."""
        if not isinstance(token, str) or self.live.get(token) != key:
            return succeed(FakeResumption(None, ""))
        del self.live[token]
        gained_by = self._key_ids.pop(token)
        by = gained_by if key_id is None else key_id
        fresh = self.issue(key, by)
        resumed: Deferred[Resumption] = fresh.addCallback(lambda token: FakeResumption(token, by))
        return resumed

    def connection_ended(self, key: DeviceKey, token: str) -> None:
        """The connection to which a token was given has ended."""
        self.ended.append((key, token))


class FakeChatLog:
    """
    A chat log in a list.

    @ivar lines: all that was appended, oldest first.
    """

    def __init__(self) -> None:
        self.lines: list[ChatLine] = []

    def append(self, line: ChatLine) -> None:
        """Keep C{line}."""
        self.lines.append(line)


class FakeOrigin:
    """
    A phone that bots answer.

    @ivar answers: what was sent to it, oldest first.
    @ivar done: the messages that owe no answer any more.
    """

    def __init__(
        self,
        key: DeviceKey = _STANDARD_KEY,
        description: Mapping[str, str] | None = None,
    ) -> None:
        """@param description: what an operator is told of it."""
        self.answers: list[Reply] = []
        self.done: list[Chat] = []
        self._key = key
        self._description = description or {"version": "3.3.3"}

    @property
    def key(self) -> DeviceKey:
        """Who it is."""
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
        self, reply: Reply, ttl: float | None = None, on_fate: FateListener | None = None
    ) -> None:
        """Keep C{reply}."""
        self.answers.append(reply)

    def message_done(self, chat: Chat) -> None:
        """Keep C{chat}."""
        self.done.append(chat)

    def describe(self) -> Mapping[str, str]:
        """What an operator may be told of it."""
        return self._description


class FakeDispatcher:
    """
    Bots in one function.

    @ivar submitted: all messages with their phones, oldest first.
    @ivar held: those that have not been answered yet.
    """

    def __init__(self, answer: Callable[[Chat], str | Media | None], hold: bool = False) -> None:
        """
        @param answer: gives the reply to a message, or L{None}.
        @param hold: whether messages wait for L{release}.
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
