"""
A phone that has proven who it is: what waits for it outlives its connections.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import TYPE_CHECKING, Final

from twisted.logger import Logger

from domaeka.interfaces import ChatLine, DeviceKey, Priority
from domaeka.messages import Chat, Reply
from domaeka.policies.mailbox import ClientIds, MailboxState, dump_mail, load_mail
from domaeka.policies.outbox import FateListener, Outbox
from domaeka.policies.patience import Patience
from domaeka.policies.quality import Grade

if TYPE_CHECKING:
    from domaeka.gateway.registry import Registry
    from domaeka.gateway.session import Session


#: A device whose messages expire is named in the log this often at most, in seconds.
EXPIRED_SAID_SECONDS: Final = 600.0
_HIGH: Final = Priority.HIGH  # to look it up in its Enum takes 0.2 µs


class Device:
    """
    A phone whose signature has held, whether or not it is connected now.

    Bots see it as the L{Origin} of a message.
    """

    log = Logger()

    __slots__ = (
        "_acknowledges",
        "_client_ids",
        "_grade",
        "_registry",
        "_said_expired",
        "approved",
        "kept_until",
        "key",
        "outbox",
        "patience",
        "pending",
        "pending_chars",
        "session",
        "takeovers",
    )

    def __init__(self, key: DeviceKey, registry: Registry) -> None:
        """@param registry: who is connected."""
        queue = registry.parts.settings.queue
        self.key = key
        self.session: Session | None = None
        self.approved = False
        self.pending = 0  # messages submitted and not done
        self.pending_chars = 0
        self.takeovers: tuple[float, ...] = ()
        self.outbox = Outbox(
            queue.max_messages,
            queue.max_bytes,
            registry.budget,
            registry.parts.seconds,
        )
        self._client_ids: ClientIds | None = None
        self._acknowledges = False
        self._registry = registry
        self._said_expired = -inf
        self._grade = Grade.GOOD  # of its line, as was told last
        self.patience = Patience()
        #: All this is known until then, by the steady time, connected or not.
        self.kept_until = 0.0

    def restore(self, kept: MailboxState) -> bool:
        """
        Have what was kept of it over a stop.

        @return: whether that comes late: other numbers than those kept have been told.
        """
        registry = self._registry
        late = load_mail(kept, self.outbox, self.client_ids, registry.parts.seconds())
        session = self.session
        if session is None:
            self._acknowledges = True
            self.kept_until = registry.steady.now + registry.parts.settings.session.lifetime
        elif not session.corked:
            session.outbox_filled()
        return late

    @property
    def epoch(self) -> str:
        """Says which numbering its outbox has: named once somebody asks."""
        if not self.outbox.epoch:
            self.outbox.epoch = self._registry.next_epoch()
        return self.outbox.epoch

    @property
    def client_ids(self) -> ClientIds:
        """Under which ids its client has sent messages."""
        if self._client_ids is None:
            self._client_ids = ClientIds()
        return self._client_ids

    # Origin

    def send(
        self,
        reply: Reply,
        ttl: float | None = None,
        on_fate: FateListener | None = None,
        priority: Priority = _HIGH,
    ) -> None:
        """
        Send something, in the phone's own dialect, now or when it is back.

        @param ttl: how long it may wait, in seconds; by default C{queue.message_ttl}.
        @param on_fate: told what becomes of it, perhaps before this returns.
        @param priority: that of an answer, or of whatever else it is.
        """
        parts = self._registry.parts
        if ttl is None:
            ttl = parts.settings.queue.message_ttl
        self.outbox.put(reply, priority, ttl, on_fate)
        if parts.chat_log is not None and type(reply.content) is str:
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
        session = self.session
        if session is not None and not session.corked:
            session.outbox_filled()

    def message_done(self, chat: Chat) -> None:
        """A message that was submitted owes no answer any more."""
        self.pending -= 1
        self.pending_chars -= len(chat.text)
        session = self.session
        if session is not None and not session.corked:
            session.message_done()

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

    def mail(self) -> MailboxState | None:
        """What is to be kept of it over a stop, if anything."""
        if not self.outbox.messages and not self._acknowledges:
            return None
        return dump_mail(self.outbox, self.client_ids, self._registry.parts.seconds())

    def attached(self, session: Session) -> None:
        """A connection is its own from now on, of which nothing is known yet."""
        self.session = session
        self._grade = Grade.GOOD
        if session.liveness is not None:
            session.liveness.is_of(self.patience, self._registry.steady.now)
        self.line_judged()

    def line_judged(self) -> None:
        """A ping was answered, or missed: on a poor line bulk has a smaller share."""
        session = self.session
        if session is None or session.liveness is None:
            return
        grade = session.liveness.quality.grade
        self.outbox.hold_low = grade in (Grade.POOR, Grade.FAILING)
        if grade is not self._grade:
            self._grade = grade
            for watcher in self._registry.watchers:
                watcher.graded(session, session.liveness)

    def connected(self, session: Session, acknowledges: bool) -> None:
        """What waits goes out on C{session} from now on."""
        self._acknowledges = acknowledges
        self.outbox.connected(acknowledges)
        session.sender.outbox = self.outbox

    def disconnected(self) -> None:
        """Its connection is gone."""
        registry = self._registry
        if self.session is not None and self.session.liveness is not None:
            self.session.liveness.ended()
        self.session = None
        self.kept_until = registry.steady.now + registry.parts.settings.session.lifetime

    def expire(self, wall: float, now: float) -> None:
        """
        Let go of what has waited too long, and say so, once a while.

        @param wall: the time now.
        @param now: the steady time.
        """
        count = self.outbox.expire(wall)
        if count and now - self._said_expired >= EXPIRED_SAID_SECONDS:
            self._said_expired = now
            self.log.warn(
                "{key}: {count} messages waited too long and will not be sent",
                key=self.key,
                count=count,
            )

    @property
    def owes_nothing(self) -> bool:
        """Whether every message is done and every answer has been taken from the outbox."""
        return not self.pending and not self.outbox.messages
