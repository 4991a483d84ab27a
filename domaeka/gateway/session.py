"""
One phone's conversation: what it said, what that means, and what it is told.

docs/protocol.md says what happens on the wire, L{NEXT} what may follow what; chat is L{Intake}'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from domaeka.errors import CloseReason, ErrorCode, WireError
from domaeka.gateway.faults import Faults
from domaeka.gateway.greeting import NO_CAPABILITIES, Greeting, signed_by
from domaeka.gateway.pinger import Pinger
from domaeka.gateway.sender import Carrier, KernelFigures, Sender
from domaeka.gateway.states import NEXT, State
from domaeka.gateway.valve import Valve
from domaeka.interfaces import DeviceFacts, DeviceKey
from domaeka.messages import (
    Ack,
    Chat,
    Handshake,
    Inbound,
    Monitoring,
    Pong,
    Reply,
    encode_error,
)
from domaeka.policies.auth import NO_KEY
from domaeka.policies.liveness import STALLED_SECONDS, Headway, Liveness

if TYPE_CHECKING:
    from domaeka.gateway.device import Device
    from domaeka.gateway.registry import Registry

#: Earliest end, after accept, of a connection known only by its messages, in seconds.  Source:
#: docs/protocol.md, "Handshake".
NO_HANDSHAKE_SECONDS: Final = 5.0
#: How long answers still go out to a phone that has finished sending, in seconds.
HALF_CLOSED_SECONDS: Final = 1.0


class Session:
    """
    One phone's conversation.

    Times are those of the registry's steady clock, in seconds, where not said otherwise.

    @ivar number: no other connection has it.
    @ivar key: who it says it is; only with a C{device} is it known to be true.
    @ivar due: when L{attend} must look at it next.
    @ivar closing: whether it has ended, but for what is on its way.
    @ivar hears: whether what arrives matters still.
    @ivar corked: whether lines are being read: their answers wait, to go out together.
    @ivar signed: whether the proof was one, and not only let through (C{auth.mode}).
    @ivar key_id: of the key behind the proof.
    @ivar valve: decides whether it is read from.
    """

    __slots__ = (
        "_carrier",
        "_deadline",
        "_faults",
        "_greeting",
        "_headway",
        "_leaving",
        "_parts",
        "_peer_finished",
        "_pinger",
        "_registry",
        "address",
        "bytes_received",
        "capabilities",
        "closing",
        "corked",
        "device",
        "due",
        "facts",
        "hears",
        "key",
        "key_id",
        "made_at",
        "messages_received",
        "monitored_at",
        "monitoring",
        "number",
        "reason",
        "sender",
        "signed",
        "state",
        "valve",
    )

    def __init__(self, registry: Registry, carrier: Carrier, address: str) -> None:
        """
        @param registry: where it is entered.
        @param carrier: the connection under it.
        @param address: where the peer is.
        """
        self._registry = registry
        self._parts = registry.parts
        self._carrier = carrier
        self.address = address
        self.number = registry.next_number()
        self.state = State.NEW
        self.key: DeviceKey | None = None
        self.facts: DeviceFacts | None = None
        self.capabilities = NO_CAPABILITIES
        self.device: Device | None = None
        self.monitoring: Monitoring | None = None
        #: When that came.
        self.monitored_at = 0.0
        self.reason: CloseReason | None = None
        self.sender = Sender(carrier, registry.parts, self._media_left)
        self.closing = False
        self.hears = True
        self.signed = False
        self.key_id = NO_KEY
        self.corked = False
        self.bytes_received = 0
        self.messages_received = 0
        self.made_at = registry.exact_now
        self._deadline = self.made_at + registry.parts.settings.server.handshake_timeout
        self.due = self._deadline
        self._pinger: Pinger | None = None
        self.valve = Valve(self.sender, registry.parts)
        self._greeting: Greeting | None = None
        self._peer_finished = False
        self._leaving: tuple[CloseReason, float] | None = None  # and until when
        self._faults: Faults | None = None
        self._headway: Headway | None = None  # since the kernel took all that was written

    def __str__(self) -> str:
        name = f" {self.key.bot_name!r} {self.key.device_id!r}" if self.key else ""
        return f"#{self.number} {self.address}{name}"

    @property
    def authenticated(self) -> bool:
        """Whether a proof has held."""
        return self.device is not None

    @property
    def faults(self) -> Faults:
        """What it is told of when something is refused: once, or so often."""
        if self._faults is None:
            self._faults = Faults(self, self._registry)
        return self._faults

    @property
    def liveness(self) -> Liveness | None:
        """When it is pinged and how well it answers, once it has shaken hands."""
        return self._pinger.liveness if self._pinger is not None else None

    @property
    def clock_skew(self) -> float | None:
        """How far the phone's clock was ahead of ours at its last pong, in seconds."""
        return self._pinger.clock_skew if self._pinger is not None else None

    def kernel_figures(self) -> KernelFigures | None:
        """What the kernel knows of the line; L{None} where it does not say."""
        return self._carrier.kernel_figures()

    @property
    def owes_nothing(self) -> bool:
        """Whether everything accepted is answered, and every answer has left."""
        device = self.device
        return self.sender.owes_nothing and (device is None or device.owes_nothing)

    # What happens to it

    def connection_made(self) -> None:
        """The connection is there."""
        self._registry.admit(self)

    def bytes_arrived(self, count: int) -> None:
        """Bytes came, whatever they say: proof of life."""
        self.bytes_received += count
        self._parts.metrics.bytes_received.value += count
        if self._pinger is not None:
            self._pinger.liveness.last_heard = self._registry.steady.now

    def line_received(self, line: bytes) -> None:
        """
        A line came.

        @raise WireError: what is wrong with it; L{refuse} is to be told.
        """
        try:
            message = self._parts.reader.read(line)
        except WireError:
            self._parts.metrics.frames_received.labels("bad").inc()
            raise
        target = NEXT.get((self.state, type(message)))
        if target is None:
            raise WireError(ErrorCode.AUTH_REQUIRED, "a handshake or signed chat must come first")
        if type(message) is Chat:
            self._registry.intake.chat_received(self, message, line)
        else:
            self._other_received(message, line, target)

    def refuse(self, error: WireError) -> None:
        """Answer a bad frame; end the conversation if it is fatal, or one too many."""
        self.faults.refused(error)

    def fail(self) -> None:
        """A mistake of our own: it costs this conversation only."""
        self._parts.metrics.errors.labels(ErrorCode.INTERNAL).inc()
        self.close(CloseReason.INTERNAL, ErrorCode.INTERNAL, "an error of the server")

    def drained(self) -> None:
        """The kernel has all that was written."""
        self.sender.drained()
        self._headway = None
        if self.closing:
            return
        self._pump()
        self.judge_reading()
        self._close_if_leaving()

    def outbox_filled(self) -> None:
        """Something waits in the device's outbox, and it is not L{corked}."""
        if not self.closing:
            self._pump()
            self.judge_reading()

    def uncork(self) -> None:
        """The lines that came together are all read: answer them together."""
        self.corked = False
        if not self.closing:
            self._pump()
            self.judge_reading()
            if self._leaving is not None:
                self._close_if_leaving()

    def message_done(self) -> None:
        """One message fewer owes an answer, and it is not L{corked}."""
        if not self.closing:
            self.judge_reading()
            if self._leaving is not None:
                self._close_if_leaving()

    def peer_finished(self) -> None:
        """The peer's FIN came: it may still read."""
        if self.closing:
            self._carrier.disconnect()
            return
        self._peer_finished = True
        self.leave(CloseReason.PEER_CLOSED, HALF_CLOSED_SECONDS)

    def leave(self, reason: CloseReason, seconds: float) -> None:
        """
        Close as soon as nothing is owed any more.

        @param seconds: when to close in any case.
        """
        until = self._registry.exact_now + seconds
        if self._leaving is not None:
            reason, until = self._leaving[0], min(until, self._leaving[1])
        self._leaving = reason, until
        self.due = self._registry.steady.now
        if not self.corked:
            self._close_if_leaving()

    def replaced(self) -> None:
        """A newer connection of the same device takes over what waits for it."""
        unsent_bytes = self._carrier.unsent_bytes
        self.sender.release(unsent_bytes)
        self.close(CloseReason.TAKEN_OVER, ErrorCode.TAKEN_OVER, "a newer connection came")
        if unsent_bytes or self.sender.in_frame:
            self._carrier.abort()  # it must not arrive twice

    def connection_lost(self, reason: CloseReason, unsent_bytes: int) -> None:
        """
        The connection is gone.

        @param reason: why, where nothing of ours ended it.
        @param unsent_bytes: how much of what was written the kernel never took.
        """
        self.sender.release(unsent_bytes, bool(self.reason) and reason is CloseReason.PEER_CLOSED)
        if self.reason is None:
            self.reason = reason
        self._registry.remove(self)
        self._stop()
        if self._greeting is not None:
            self._greeting.connection_lost()
        self._parts.metrics.closes.labels(self.reason).inc()

    # What it is told

    def send(self, event: str, frame: bytes) -> None:
        """
        Send a frame of the connection's own, ahead of what waits in the outbox.

        @param event: the frame's, to be counted.
        """
        if self.closing:
            return
        self.sender.urge(event, frame)
        if not self.corked:
            self._pump()

    def close(self, reason: CloseReason, code: ErrorCode | None = None, text: str = "") -> None:
        """
        End the conversation: say why, hand over what is written, finish; the sweep cuts it off
        at the deadline.

        @param code: what the peer is told, with C{text}; L{None}: nothing.
        """
        if self.closing:
            self.hears = False
            return
        if self.corked:
            self._pump()  # what was answered ahead of the line that ends it
        self._stop()
        # Until it sees our FIN, the phone chats on: that is answered on its next connection.
        self.hears = reason is CloseReason.NO_HANDSHAKE
        self.reason = reason
        may_linger = self._registry.closing(self)
        if reason is CloseReason.GAVE_WAY or not may_linger:
            self._carrier.abort()
            return
        if code is not None:
            self.sender.urge("error", encode_error(code, text))
        self.sender.last_words()
        self._deadline = self._registry.exact_now + self._parts.settings.socket.linger_seconds
        self.due = self._deadline
        if self._peer_finished:
            self._carrier.disconnect()
        else:
            self._carrier.finish()

    def _stop(self) -> None:
        """Nothing more is said."""
        self.state = State.CLOSING
        self.closing = True
        self.hears = False

    def cut(self) -> None:
        """End the conversation at once, whatever is lost."""
        self.close(CloseReason.SHUTDOWN)
        self._carrier.abort()

    # Time

    def attend(self, now: float, judging: bool) -> None:
        """
        Do what is due.

        @param now: the steady time.
        @param judging: whether nobody was held up, so that silence counts.
        """
        state = self.state
        if self.closing:
            if now >= self._deadline:
                self._carrier.abort()
            return
        self.judge_reading()
        self._close_if_leaving()
        if self.closing:
            return
        if not self.sender.idle and self._is_stalled(now) and judging:
            self.close(CloseReason.TOO_SLOW)
            self._carrier.abort()
            return
        if not self.sender.idle and self.device is not None:
            self.device.outbox.line_moves()
        if state is State.READY:
            pinger = self._pinger
            assert pinger is not None
            if judging and pinger.is_unanswered(now):
                self._parts.metrics.ping_timeouts.inc()
                self.close(CloseReason.PING_TIMEOUT)
                return
            if pinger.liveness.ping_due(now):
                pinger.ping()
                self._pump()
            self.due = pinger.liveness.due
        else:
            self._attend_unready(now, judging)
        if self._leaving is not None or not self.sender.idle or not self.valve.open:
            self.due = now

    def _is_stalled(self, now: float) -> bool:
        """Whether the peer's kernel has long taken nothing of what is on its way."""
        liveness = self.liveness
        deaf = liveness is not None and now < liveness.deaf_until
        # One that is not read from may be held up by its own write; but it holds up no drain.
        patient = not self.valve.open and not self._registry.draining
        patience = self._parts.settings.ping.timeout if patient else STALLED_SECONDS
        if self._headway is None:
            self._headway = Headway(now)
        return self._headway.missing(self._carrier.backlog_bytes, now, deaf) >= patience

    def _attend_unready(self, now: float, judging: bool) -> None:
        if judging and now >= self._deadline and not self.greeting_waits:
            if self.state is State.GREETED:
                self.close(
                    CloseReason.AUTHENTICATION_TIMEOUT,
                    ErrorCode.AUTH_REQUIRED,
                    "no signature came in time",
                )
            elif self.state is State.NEW:
                self.close(CloseReason.HANDSHAKE_TIMEOUT)
            else:
                self.close(CloseReason.NO_HANDSHAKE)
            return
        self.due = self._deadline
        if self.state is State.KNOWN:
            self.due = now
            if now >= self.made_at + NO_HANDSHAKE_SECONDS and self.owes_nothing:
                self.close(CloseReason.NO_HANDSHAKE)

    # Handshake

    def _handshake_received(self, handshake: Handshake, line: bytes, target: State) -> None:
        self._parts.metrics.frames_received.labels("handshake").inc()
        if self.key is not None and self.key != (handshake.bot_name, handshake.device_id):
            self.close(
                CloseReason.OTHER_DEVICE,
                ErrorCode.BAD_HANDSHAKE,
                "a second handshake named another device",
            )
        elif self._greeting is None:
            self._greeting = Greeting(self, self._registry, self._carrier)
            self._greeting.handshake_received(handshake, line, target)
        else:
            self._greeting.handshake_repeated()

    def introduced(self, key: DeviceKey, facts: DeviceFacts, target: State) -> None:
        """A handshake said who this is."""
        self._known_as(key, facts)
        self.state = target

    def _known_as(self, key: DeviceKey, facts: DeviceFacts) -> None:
        self._registry.named(self, key)
        self.key = key
        self.facts = facts
        if self._pinger is None:
            liveness = self._registry.new_liveness()
            self._pinger = Pinger(liveness, self.sender, key.bot_name, self._parts)

    def authenticate(self, proof: type, signed: bool = True, key_id: str | None = None) -> None:
        """A proof held (a token: of C{key_id}), or none was wanted: it is its device's now."""
        assert self.key is not None and self.facts is not None
        if not signed:
            self._registry.keep_place(self.key)
        self.signed = signed
        self.key_id = self._parts.verifier.key_id(self.key, signed) if key_id is None else key_id
        self.state = NEXT[self.state, proof]
        self.device = self._registry.attach(self, self.key, self.facts)
        self._parts.limits.give_back(self.address)
        self._parts.limits.verified(self.address)
        self.valve.authenticated(self.device)
        self.due = self._registry.steady.now
        if not self.greeting_waits:
            self._open_outbox()

    def settings_changed(self) -> None:
        """Other settings are in force."""
        self.valve.apply()
        self._carrier.limit_lines(self._parts.settings.server.max_frame_bytes)
        if self._pinger is not None:
            self.due = self._registry.steady.now
            self._pinger.liveness.apply(self._parts.settings.ping, self.due)

    def welcomed(self) -> None:
        """The first handshake has been answered: what waits for the device may follow."""
        self.due = self._registry.steady.now
        if "deflate" in self.capabilities:
            self.sender.start_deflating()
            self._carrier.start_inflating()
        elif "gzip" in self.capabilities:
            self.sender.pack = self._parts.pack
        if self.authenticated:
            if self.sender.outbox is None:  # else it is in use: known by a message before
                self._open_outbox()
        else:
            self._deadline = (
                self._registry.exact_now + self._parts.settings.server.authentication_timeout
            )
            assert self._pinger is not None
            self._pinger.ping()
        migration = self._registry.migration
        if migration is not None:
            migration.client_came(self)
        if not (self.corked or self.closing):
            self._pump()

    def _open_outbox(self) -> None:
        assert self.device is not None
        self.device.connected(self, "ack" in self.capabilities)

    @property
    def greeting_waits(self) -> bool:
        """Whether the answer to its handshake is still to come."""
        return self._greeting is not None and self._greeting.waits

    # What it says

    def _other_received(self, message: Inbound, line: bytes, target: State) -> None:
        if type(message) is Pong:
            self._pong_received(message, line)
        elif type(message) is Handshake:
            self._handshake_received(message, line, target)
        elif type(message) is Ack:
            self._parts.metrics.frames_received.labels("ack").inc()
            if self.device is None or not self.device.outbox.acknowledges:
                raise WireError(ErrorCode.BAD_FRAME, "acknowledgements were not agreed on")
            self.device.outbox.ack(message.message_id)
        else:
            self._parts.metrics.frames_received.labels("migrated").inc()
            if self._registry.migration is not None:
                self._registry.migration.client_arrived(self)
            # What it said until then is answered here.
            self.leave(CloseReason.MIGRATED, self._parts.settings.shutdown.drain_timeout)

    def _pong_received(self, pong: Pong, line: bytes) -> None:
        self._parts.metrics.frames_received.labels("pong").inc()
        if not self._parts.verifier.is_new(pong.auth, self.key, self.number, line):
            self._parts.metrics.repeats_dropped.inc()
            return
        if self.device is None:
            self.authenticate(Pong, pong.auth is not None)
        elif not self.signed and pong.auth is not None:
            self._registry.now_signed(self)
        if pong.monitoring is not None:
            self.monitoring = pong.monitoring
            self.monitored_at = self._registry.exact_now
        self._parts.limits.verified(self.address)
        assert self._pinger is not None
        self._pinger.pong_received(pong, self._registry.steady.now)
        if self.device is not None:
            self.device.line_judged()

    def known_by(self, chat: Chat) -> Device:
        """The first chat whose signature held: it says who this is, if nothing else has."""
        if self.key is None:
            assert chat.auth is not None
            self._known_as(*signed_by(chat.auth, self.address))
        self.authenticate(Chat, chat.auth is not None)
        assert self.device is not None
        return self.device

    # Reading and writing

    def _pump(self) -> None:
        sender = self.sender
        sender.pump()
        if not sender.idle:
            self.due = min(self.due, self._registry.steady.now)
        pinger = self._pinger
        if pinger is not None and pinger.waits and pinger.pumped(self._registry.steady.now):
            self.due = min(self.due, pinger.liveness.due)
            if self.device is not None:
                self.device.line_judged()  # the ping before may have been missed

    def _media_left(self, reply: Reply) -> None:
        """The phone will be deaf for a while: that is no silence."""
        if self._pinger is not None:
            assert self.facts is not None and self.device is not None
            now, liveness = self._registry.steady.now, self._pinger.liveness
            liveness.deafened(now, reply.deaf_seconds(self.facts.version))
            until = self._parts.seconds() + liveness.deaf_until - now
            self.device.outbox.stay_away(max(self.device.outbox.away_until, until))

    def judge_reading(self) -> None:
        """Stop reading a phone that is given more than it takes; go on once half has gone."""
        valve = self.valve
        if valve.calm or self.greeting_waits or not valve.changed():
            return
        now = self._registry.steady.now
        liveness = self.liveness
        if valve.open:
            self._headway = None
            if liveness is not None:
                liveness.reading_resumed(now)
            self._carrier.resume_reading()
        else:
            if liveness is not None:
                liveness.reading_paused(now)
            self.due = now
            self._carrier.pause_reading()

    def _close_if_leaving(self) -> None:
        """One that leaves stays for what it is owed, and not for ever."""
        if self._leaving is not None and not self.closing:
            reason, until = self._leaving
            if self._registry.exact_now >= until or self.owes_nothing:
                self.close(reason)

    # What is known of it

    @property
    def age(self) -> float:
        """How long it has been connected, in seconds."""
        return self._registry.exact_now - self.made_at
