"""
Who is connected: connections, the devices behind them, and the one sweep over both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from random import Random
from typing import TYPE_CHECKING

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from domaeka.config import Settings
from domaeka.errors import CloseReason
from domaeka.gateway.verifier import Verifier
from domaeka.interfaces import (
    Approval,
    ChatLine,
    ChatLog,
    DeviceFacts,
    DeviceKey,
    Devices,
    Dispatcher,
    Priority,
    RoomKey,
    Rooms,
    Sessions,
)
from domaeka.messages import Chat, FrameReader, Reply
from domaeka.metrics import Metrics
from domaeka.policies.auth import SignatureTable, Signer
from domaeka.policies.liveness import Liveness, SteadyTime
from domaeka.policies.mailbox import ClientIds
from domaeka.policies.outbox import Budget, Outbox

if TYPE_CHECKING:
    from domaeka.gateway.session import Session

#: How often the sweep looks at every connection, in seconds: how late a deadline may be.
SWEEP_SECONDS = 1.0
#: How often signatures that are no longer valid are forgotten, in seconds.
FORGET_SECONDS = 60.0
#: Strangers that close are cut off at once beyond this share of the limit: they hold open files.
CLOSING_SHARE = 0.5
#: A device whose connections replace each other this often in a minute is two phones.
TAKEOVERS_SUSPECT = 5


class Parts:
    """What all connections use.  Wired in C{tap.py}."""

    def __init__(
        self,
        *,
        settings: Settings,
        signer: Signer,
        sessions: Sessions | None,
        devices: Devices,
        rooms: Rooms,
        chat_log: ChatLog | None,
        metrics: Metrics,
        seconds: Callable[[], float],
        random: Random,
        server_version: str,
        node: str,
    ) -> None:
        """
        @param sessions: L{None}: no session tokens are given.
        @param chat_log: L{None} where chat is not to be written.
        @param seconds: the time now, in seconds since 1970.
        @param node: what this server is called among others.
        """
        self.settings = settings
        self.verifier = Verifier(
            settings.auth, signer, SignatureTable(settings.auth.clock_skew, seconds), metrics
        )
        self.sessions = sessions
        #: What clients may ask for in their handshake.
        self.capabilities = frozenset({"ack"} | ({"session"} if sessions is not None else set()))
        self.reader = FrameReader(settings.server.max_text_chars, settings.server.max_frame_bytes)
        self.devices = devices
        self.rooms = rooms
        self.chat_log = chat_log
        self.metrics = metrics
        self.seconds = seconds
        self.random = random
        self.server_version = server_version
        self.node = node
        self.dispatcher: Dispatcher | None = None


class Device:
    """
    A phone whose signature has held, whether or not it is connected now.

    Bots see it as the L{Origin} of a message.
    """

    __slots__ = (
        "_client_ids",
        "_registry",
        "approved",
        "key",
        "outbox",
        "pending",
        "pending_chars",
        "session",
        "takeovers",
    )

    def __init__(self, key: DeviceKey, registry: Registry) -> None:
        queue = registry.parts.settings.queue
        self.key = key
        self.session: Session | None = None
        self.approved = False
        self.pending = 0  # messages submitted and not done
        self.pending_chars = 0
        self.takeovers: list[float] = []
        self.outbox = Outbox(
            queue.max_messages,
            queue.max_bytes,
            registry.budget,
            registry.parts.seconds,
            registry.next_epoch(),
        )
        self._client_ids: ClientIds | None = None
        self._registry = registry

    @property
    def client_ids(self) -> ClientIds:
        """Under which ids its client has sent messages."""
        if self._client_ids is None:
            self._client_ids = ClientIds()
        return self._client_ids

    # Origin

    def answer(self, reply: Reply) -> None:
        """Send something, in the phone's own dialect, now or when it is back."""
        parts = self._registry.parts
        self.outbox.put(reply, Priority.HIGH, parts.settings.queue.message_ttl)
        if parts.chat_log is not None and isinstance(reply.content, str):
            parts.chat_log.append(
                ChatLine(
                    parts.seconds(),
                    "out",
                    self.key.bot_name,
                    self.key.device_id,
                    reply.channel_id or reply.room,
                    reply.room,
                    "",
                    None,
                    None,
                    reply.content,
                )
            )
        if self.session is not None:
            self.session.outbox_filled()

    def message_done(self, chat: Chat) -> None:
        """A message that was submitted owes no answer any more."""
        self.pending -= 1
        self.pending_chars -= len(chat.text)
        if self.session is not None:
            self.session.message_done()

    def describe(self) -> Mapping[str, str]:
        """What an operator may be told of it: names to values, both for people."""
        session = self.session
        if session is None or session.facts is None:
            return {}
        facts = session.facts
        liveness = session.liveness
        round_trip = liveness.quality.srtt if liveness is not None else None
        return {
            "봇": self.key.bot_name,
            "기기": self.key.device_id,
            "스크립트": f"{facts.client_type} {facts.version}",
            "기종": facts.device_info or "-",
            "주소": session.address,
            "연결 시간": f"{session.age:.0f}초",
            "왕복 시간": "-" if round_trip is None else f"{round_trip * 1000:.0f}ms",
            "받은 메시지": str(session.messages_received),
            "보낸 메시지": str(session.sender.messages_sent),
        }

    def submit(self, chat: Chat) -> None:
        """Have a message answered."""
        dispatcher = self._registry.parts.dispatcher
        assert dispatcher is not None
        self.pending += 1
        self.pending_chars += len(chat.text)
        dispatcher.submit(chat, self)

    @property
    def owes_nothing(self) -> bool:
        """Whether every message is done and every answer has been taken from the outbox."""
        return not self.pending and not self.outbox.messages


class Registry:
    """Who is connected."""

    log = Logger()

    def __init__(self, parts: Parts, reactor: IReactorTime) -> None:
        """
        @param parts: what connections use.
        @param reactor: what the sweep is scheduled with.
        """
        self.parts = parts
        self.budget = Budget(parts.settings.queue.total_bytes)
        self.steady = SteadyTime(SWEEP_SECONDS, parts.seconds())
        self.draining = False
        self._devices: dict[DeviceKey, Device] = {}
        self._sessions: dict[int, Session] = {}
        #: Those that have not authenticated, the oldest first.
        self._strangers: dict[int, Session] = {}
        self._closing = 0
        self._last_number = 0
        self._epoch = f"{parts.random.getrandbits(64):016x}"
        self._last_epoch = 0
        self._forgot_at = parts.seconds()
        self._sweep_call = LoopingCall(self._sweep)
        self._sweep_call.clock = reactor

    def start(self) -> None:
        """Begin to sweep."""
        self._sweep_call.start(SWEEP_SECONDS, now=False).addErrback(
            lambda failure: self.log.failure("the sweep has ended", failure)
        )

    def stop(self) -> None:
        """Sweep no more."""
        if self._sweep_call.running:
            self._sweep_call.stop()

    # Connections

    def __len__(self) -> int:
        """How many connections there are that are not closing."""
        return len(self._sessions) - self._closing

    @property
    def connections(self) -> int:
        """How many connections there are, those that are closing with them."""
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        """The connections as they are now."""
        return iter(list(self._sessions.values()))

    def device(self, key: DeviceKey) -> Device | None:
        """A device that is connected, or for which something waits."""
        return self._devices.get(key)

    def devices(self) -> list[Device]:
        """All devices that are connected, or for which something waits."""
        return list(self._devices.values())

    def next_number(self) -> int:
        """A number that no other connection has."""
        self._last_number += 1
        return self._last_number

    def new_liveness(self) -> Liveness:
        """For a connection that has shaken hands."""
        return Liveness(self.parts.settings.ping, self.steady.now, self.parts.random)

    def next_epoch(self) -> str:
        """A name for the numbering of an outbox that is new."""
        self._last_epoch += 1
        return f"{self._epoch}-{self._last_epoch}"

    def admit(self, session: Session) -> bool:
        """
        A connection was made: find it a place.

        @return: whether there was one.
        """
        limit = self.parts.settings.server.max_connections
        full = len(self) >= limit
        if full:
            oldest = next(iter(self._strangers.values()), None)
            if oldest is not None:
                oldest.close(CloseReason.GAVE_WAY)
                full = False
        self._sessions[session.number] = session
        self._strangers[session.number] = session
        return not full

    def closing(self, session: Session) -> bool:
        """
        A connection begins to close.

        @return: whether it may take its time.
        """
        self._strangers.pop(session.number, None)
        self._closing += 1
        if session.authenticated:
            return True
        limit = self.parts.settings.server.max_connections
        return self._closing <= max(8, limit * CLOSING_SHARE)

    def remove(self, session: Session) -> None:
        """A connection has ended."""
        if self._sessions.pop(session.number, None) is not None and session.closing:
            self._closing -= 1
        self._strangers.pop(session.number, None)
        device = session.device
        if device is not None and device.session is session:
            device.session = None

    def attach(self, session: Session, key: DeviceKey, facts: DeviceFacts) -> Device:
        """
        A connection has authenticated: it is its device's from now on.

        An older connection of the same device is told and closed.
        """
        self._strangers.pop(session.number, None)
        device = self._devices.get(key)
        if device is None:
            device = self._devices[key] = Device(key, self)
        approval = self.parts.devices.enter(key, facts)
        device.approved = approval is Approval.APPROVED
        older = device.session
        if older is not None and older is not session:
            if not older.closing:
                self._note_takeover(device)
            older.replaced()
        device.session = session
        return device

    def _note_takeover(self, device: Device) -> None:
        """Two phones under one name throw each other out for ever: say so, once a minute."""
        now = self.steady.now
        device.takeovers = [time for time in device.takeovers if now - time < 60] + [now]
        if len(device.takeovers) == TAKEOVERS_SUSPECT:
            self.parts.metrics.errors.labels("duplicate device").inc()
            self.log.warn(
                "{key}: {count} connections took each other's place within a minute: are there "
                "two phones of this name?",
                key=device.key,
                count=TAKEOVERS_SUSPECT,
            )

    def approval_changed(self, key: DeviceKey, approval: Approval) -> None:
        """An operator decided: in force on the open connection at once."""
        device = self._devices.get(key)
        if device is not None:
            device.approved = approval is Approval.APPROVED

    def enter_room(self, device: Device, chat: Chat) -> bool:
        """Chat was heard.  @return: whether it is to be answered."""
        key = RoomKey(device.key.bot_name, chat.room_id)
        heard = self.parts.rooms.enter(key, device.key, chat.room, chat.is_group)
        return heard and device.approved

    # Time

    def _sweep(self) -> None:
        judging = self.steady.advance(self.parts.seconds())
        now = self.steady.now
        for session in list(self._sessions.values()):
            if session.due <= now:
                try:
                    session.attend(now, judging)
                except Exception:
                    self.log.failure("{session}: our own mistake", session=session)
                    session.fail()
        wall = self.parts.seconds()
        for device in list(self._devices.values()):
            device.outbox.expire(wall)
            if device.session is None and device.owes_nothing:
                del self._devices[device.key]
        if abs(wall - self._forgot_at) >= FORGET_SECONDS:
            self._forgot_at = wall
            self.parts.verifier.signatures.sweep()
