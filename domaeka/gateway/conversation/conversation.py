"""
A phone's conversation: its frames are read, acted on and answered.

docs/protocol.md describes the wire, L{NEXT} the order of frames.
"""

from collections.abc import Callable
from functools import partial
from typing import Final

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from domaeka.errors import CloseReason, ErrorCode, WireError
from domaeka.gateway.authentication import AuthRefused, Verdict
from domaeka.gateway.context import Context
from domaeka.gateway.conversation.carrier import AT_ONCE, DOUBT_SECONDS, Carrier
from domaeka.gateway.conversation.handshake import (
    Token,
    ask_store,
    handshake_reply,
    named_by_handshake,
    named_by_signature,
    release_token,
    settled_capabilities,
    taken_capabilities,
    waits_for_entry,
)
from domaeka.gateway.conversation.keepalive import KeepAlive
from domaeka.gateway.conversation.states import KNOWN_SECONDS, NEXT
from domaeka.gateway.conversation.violations import Violations, note_clock_fault
from domaeka.gateway.device import Device
from domaeka.gateway.doubts import Doubt
from domaeka.gateway.joints import Membership, Transport
from domaeka.gateway.peer import State
from domaeka.interfaces import DeviceFacts, DeviceKey
from domaeka.policies.auth import AuthFault
from domaeka.policies.liveness import Liveness
from domaeka.wire import (
    Ack,
    Auth,
    Chat,
    DeliveryReport,
    Handshake,
    Inbound,
    Pong,
    Probe,
    encode_ack,
    encode_error,
    encode_probe,
)

#: Longest round trip of a ping whose answer tells the phone's clock, in seconds.
MEASURED_SECONDS: Final = 10.0

_log = Logger()


def too_early() -> WireError:
    """The error of a frame that may not come yet."""
    return WireError(ErrorCode.AUTH_REQUIRED, "a handshake or signed chat must come first")


class Conversation(Carrier):
    """A phone's conversation: a L{LineReceiver} to its connection, a L{Member} to the directory."""

    __slots__ = ("_handshaken", "_lists_capabilities", "_violations")

    def __init__(
        self, context: Context, membership: Membership, transport: Transport, address: str
    ) -> None:
        """@param address: the peer's."""
        super().__init__(context, membership, transport, address)
        self._violations: Violations | None = None
        self._handshaken = False  # a handshake has come
        self._lists_capabilities = False  # the handshake listed capabilities

    def read(self, next_line: Callable[[], bytes | None], most: int) -> int:
        self.peer.corked = True
        lines_left, size = most, 0
        line: bytes | None = None
        # A line may end the conversation, or pause its reading: the next ones wait.
        while lines_left and self.peer.reads and self._throttle.open and not self._waits_for_store:
            try:
                line = next_line()
                if line is None:
                    break
                lines_left -= 1
                size += len(line)
                self._line_received(line)
            except WireError as error:
                if line is not None and not isinstance(error, AuthRefused):
                    self.not_read(line)
                line = None  # the next one may be too long to be read
                self._refuse(error)
            except Exception:
                if line is not None:
                    self.not_read(line)
                _log.failure("{peer}: our own mistake", peer=self.peer)
                self._fail()
        self._throttle.allowance.bytes_came(size)
        self.peer.corked = False
        self.wake()
        return most - lines_left

    # Frames

    def _line_received(self, line: bytes) -> None:
        """Act on a line.  @raise WireError: a violation."""
        try:
            message = self._context.reader.read(line)
        except WireError:
            self._context.metrics.frames_received.labels("bad").inc()
            raise
        target = NEXT.get((self.peer.state, type(message)))
        if target is None:
            raise too_early()
        if type(message) is Chat:
            self._context.metrics.messages_received.value += 1
            self._throttle.allowance.message_came()
            self._take_chat(message, line)
        else:
            self._other_received(message, line, target)

    def _other_received(self, message: Inbound, line: bytes, target: State) -> None:
        frames = self._context.metrics.frames_received
        if type(message) is Pong:
            frames.labels("pong").inc()
            if self._keepalive is None:  # it was asked for nothing
                raise too_early()
            self._pong_received(message, line)
        elif type(message) is Handshake:
            frames.labels("handshake").inc()
            self._handshake_received(message, line, target)
        elif type(message) is Ack:
            frames.labels("ack").inc()
            self._device_with("ack").outbox.ack(message.message_id)
        elif type(message) is DeliveryReport:
            frames.labels("delivery").inc()
            self._device_with("delivery").delivery_reported(message)
        elif type(message) is Probe:
            frames.labels("probe").inc()
            self._writer.put_urgent("probe", encode_probe())
        else:
            frames.labels("migrated").inc()
            self._membership.moved(self.peer)
            # Messages received before are answered here.
            within = self._context.settings.shutdown.drain_timeout
            self.close(CloseReason.MIGRATED, within=within)

    def _device_with(self, capability: str) -> Device:
        """The device.  @raise WireError: the capability was not agreed on."""
        if self._device is None or capability not in self.peer.capabilities:
            raise WireError(ErrorCode.BAD_FRAME, f"{capability} was not agreed on")
        return self._device

    def _take_chat(self, chat: Chat, line: bytes) -> None:
        """Take a message.  @raise WireError: its proof is wrong, or it cannot be inflated."""
        context, peer = self._context, self.peer
        acknowledges = chat.client_id is not None and "ack" in peer.capabilities
        verdict = context.authentication.judge(chat.auth, peer, line)
        if verdict is Verdict.DOUBTFUL:
            self._hold(chat, line)
            return
        device = self._device
        # A repeated line that was refused the first time has not been taken yet.
        if verdict is Verdict.REPEAT and (
            not acknowledges or device is None or chat.client_id in device.client_ids
        ):
            context.metrics.repeats_dropped.value += 1
            if acknowledges and device is not None:
                self._acknowledge(device, chat)
            return
        if device is None:
            if peer.key is None:
                assert chat.auth is not None
                self._introduce(*named_by_signature(chat.auth, peer.address))
            device = self._authenticate(Chat, chat.auth is not None)
        elif not peer.signed and chat.auth is not None:
            self._sign(device)
        peer.messages_received += 1
        self._writer.dialect = chat.dialect
        if chat.packed is not None:
            self._throttle.allowance.bytes_came(context.unpack(chat))
        if not context.serving.takes_work:
            self._refuse_work()
            return
        if acknowledges and not self._acknowledge(device, chat):
            return
        device.chat_received(chat)
        if not peer.capabilities and self._keepalive is not None:
            self._keepalive.liveness.talked_at = context.steady.now
            self._due = AT_ONCE
        if not self._throttle.calm:
            self._judge_reading()

    def _acknowledge(self, device: Device, chat: Chat) -> bool:
        """Acknowledge a client's message.  @return: whether it is new."""
        assert chat.client_id is not None
        if not device.has_room(chat):
            return False  # the store is in trouble: the client will say it again
        self._writer.put_ack(encode_ack(chat.client_id))
        return not device.client_ids.seen(chat.client_id)

    def _pong_received(self, pong: Pong, line: bytes) -> None:
        context, peer = self._context, self.peer
        assert self._keepalive is not None
        verdict = context.authentication.judge(pong.auth, peer, line)
        if verdict is Verdict.REPEAT:
            context.metrics.repeats_dropped.inc()
            return
        found = None
        if verdict is Verdict.DOUBTFUL:
            found = self._find_lead(pong)
            if found is None:
                return
        if self._device is None:
            self._authenticate(Pong, pong.auth is not None)
        elif not peer.signed and pong.auth is not None:
            self._sign(self._device)
        if found is not None:
            assert peer.key is not None
            context.devices.clock_measured(peer.key, found)
        if pong.monitoring is not None:
            peer.monitoring = pong.monitoring
            peer.monitored_at = context.steady.exact()
        round_trip = self._keepalive.pong_received(pong, context.steady.now)
        if pong.auth is not None and round_trip is not None and round_trip <= MEASURED_SECONDS:
            assert peer.key is not None
            lead, known = self._keepalive.clock_skew or 0.0, context.devices.clock_lead(peer.key)
            if known is None or abs(lead - known) > round_trip / 2:  # as exact as it is known
                context.devices.clock_measured(peer.key, lead)
        self._quality_judged()

    # Doubt: a right signature that may be recorded

    def _hold(self, chat: Chat, line: bytes) -> None:
        """
        Have a line wait until the peer proves itself, and ask it to.

        @raise WireError: there is no place for the peer, or no room for the line.
        """
        context, peer = self._context, self.peer
        assert chat.auth is not None
        if peer.key is None:
            self._introduce(*named_by_signature(chat.auth, peer.address))
        doubt = self._doubt
        if doubt is None:
            doubt = self._doubt_peer()
        if not doubt.hold(chat, line):
            raise context.authentication.refusal(AuthFault.STALE, peer.key)

    def _doubt_peer(self) -> Doubt:
        """Begin to doubt the peer, and ping it."""
        self._doubt = doubt = Doubt(self._context.doubts, self.peer.address)
        self._due = AT_ONCE
        now = self._context.steady.now
        # It has shown a right signature, and its clock takes several pings.
        timeout = self._context.settings.server.authentication_timeout
        self._deadline = max(self._deadline, now + timeout)
        self._membership.doubted(self)
        if self.peer.greeted:  # with a ping
            doubt.ping_due = now + DOUBT_SECONDS
        self._ping_doubtful(doubt, now)
        return doubt

    def _find_lead(self, pong: Pong) -> float | None:
        """
        Take a pong of a time that its phone's clock, as far as it is known, does not have.

        @return: the lead of that clock, in seconds, if it is found by now; it was set.
        """
        assert self._keepalive is not None
        doubt = self._doubt or self._doubt_peer()
        round_trip = self._keepalive.pong_received(pong, self._context.steady.now)
        lead = self._keepalive.clock_skew
        if round_trip is None or lead is None:
            return None  # it answers nothing
        assert self.peer.key is not None
        known = self._context.devices.clock_lead(self.peer.key)
        return lead if doubt.series.agrees(lead, round_trip, known) else None

    def _end_doubt(self) -> None:
        """The peer has proven itself: take the lines that waited for it."""
        doubt, self._doubt = self._doubt, None
        for chat, line in () if doubt is None else doubt.release():
            if self.peer.closing:
                return
            try:
                self._take_chat(chat, line)
            except WireError as error:
                self._refuse(error)

    # Violations

    def _refuse(self, error: WireError, in_handshake: bool = False) -> None:
        """
        Answer a violation; end the conversation if it is fatal, or if there were too many.

        @param in_handshake: whether the proof in a handshake was wrong.
        """
        context, peer = self._context, self.peer
        context.metrics.errors.labels(error.code).inc()
        if isinstance(error, AuthRefused):
            if error.owner:
                self._membership.replayed(error.owner, peer)
            stranger = self._device is None or in_handshake
            if error.fault is AuthFault.WRONG_SIGNATURE and stranger:
                assert error.claimed is not None
                context.limits.failed_signature(peer.address, error.claimed)
        elif error.code is ErrorCode.AUTH_FAILED:
            context.metrics.auth_failures.labels(AuthFault.MALFORMED).inc()
        violations = self._violations = self._violations or Violations()
        reaction = violations.judge(error, context.steady.now, in_handshake)
        if reaction.notified and isinstance(error, AuthRefused) and error.skew is not None:
            note_clock_fault(context, peer, error.skew, error.signature)
        if reaction.reason is not None:
            self.close(reaction.reason, error.code, error.text)
        elif reaction.notified:
            self.tell("error", encode_error(error.code, error.text))

    def _refuse_work(self) -> None:
        """Send the error of a stopping server, once."""
        violations = self._violations = self._violations or Violations()
        if not violations.work_refused:
            violations.work_refused = True
            text = "the server takes no more messages"
            self.tell("error", encode_error(ErrorCode.SHUTTING_DOWN, text))

    # Handshake

    def _handshake_received(self, handshake: Handshake, line: bytes, target: State) -> None:
        peer = self.peer
        if peer.key is not None and peer.key != (handshake.bot_name, handshake.device_id):
            self.not_read(line)
            self.close(
                CloseReason.OTHER_DEVICE,
                ErrorCode.BAD_HANDSHAKE,
                "a second handshake named another device",
            )
        elif not self._handshaken:
            self._handshaken = True
            self._first_handshake(handshake, line, target)
        else:
            if handshake.auth is not None:
                self.not_read(line)
            if not self._waits_for_store:
                self._reply_to_handshake(Token())  # a repetition changes nothing

    def _first_handshake(self, handshake: Handshake, line: bytes, target: State) -> None:
        """
        Take the first handshake.  A client with session tokens is answered once the store has
        answered, and not read from until then; all others at once.
        """
        context, peer = self._context, self.peer
        key, facts = named_by_handshake(handshake, peer.address)
        self._introduce(key, facts)
        peer.state = target
        if self._leaving is not None and self._leaving[0] is CloseReason.NO_HANDSHAKE:
            self._leaving = None  # it came while the last answers were under way
        self._lists_capabilities = handshake.capabilities is not None
        needless = context.authentication.needs_no_proof
        if peer.authenticated:
            # After a signed message; a handshake is too late for capabilities.
            if needless or handshake.auth is None or self._judge_proof(handshake.auth, line):
                context.devices.enter(key, facts)
                self._greet(Token())
            return
        peer.capabilities = taken_capabilities(handshake, context)
        if handshake.uptime is not None:
            peer.app_started_at = context.wall() - handshake.uptime
        self._writer.dialect = handshake.dialect
        proven = needless
        if handshake.auth is not None and not needless:
            verdict = self._judge_proof(handshake.auth, line)
            if verdict is None:
                return
            proven = verdict is not Verdict.DOUBTFUL
        shown = handshake.session_token
        # Before it authenticates: its outbox is opened behind the reply.
        self._waits_for_store = "session" in peer.capabilities and (proven or shown is not None)
        if proven:
            if self._membership.refuses_server(key):
                self.close(
                    CloseReason.SHUTDOWN,
                    ErrorCode.SHUTTING_DOWN,
                    "the phones of this server are moving",
                )
                return
            self._authenticate(Auth)
        self._waits_for_store |= proven and waits_for_entry(context, peer)
        if self._waits_for_store:
            self._transport.pause_reading()
            asking = ask_store(context, peer, shown, peer.key_id if proven else None)
            asked = Deferred.fromCoroutine(asking)
            asked.addCallback(self._store_answered).addErrback(self._store_failed)
        else:
            self._greet(Token())

    def _judge_proof(self, auth: Auth, line: bytes) -> Verdict | None:
        """Judge the proof in a handshake; L{None}: it is wrong, and ends the connection."""
        authentication, peer = self._context.authentication, self.peer
        try:
            verdict = authentication.judge(auth, peer, line)
            if verdict is Verdict.REPEAT:
                raise authentication.refusal(AuthFault.REPLAY, peer.key)
        except AuthRefused as error:
            self._refuse(error, in_handshake=True)
            return None
        return verdict

    def _store_answered(self, token: Token) -> None:
        if self.peer.closing:
            if token.text is not None:
                release_token(self._context, self.peer, token.text)
            return
        self._token = token.text
        if token.resumed_by is not None and not self.peer.authenticated:
            self._authenticate(Auth, key_id=token.resumed_by)
        self._greet(token)
        if self._throttle.open:
            self._transport.resume_reading()

    def _store_failed(self, failure: Failure) -> None:
        if isinstance(failure.value, WireError):  # there is no place
            self._refuse(failure.value)
        else:
            _log.failure("{peer}: our own mistake", failure, peer=self.peer)
            self._fail()

    def _greet(self, token: Token) -> None:
        """Answer the first handshake, and send what waits for the device."""
        context, peer = self._context, self.peer
        self._waits_for_store = False
        peer.capabilities = settled_capabilities(peer)
        self._reply_to_handshake(token)
        if "deflate" in peer.capabilities:
            self._writer.start_deflating()
            self._transport.start_inflating()
        elif "gzip" in peer.capabilities:
            self._writer.pack = context.pack
        if peer.authenticated:
            self._measure()
            if self._writer.outbox is None:  # else in use, after a signed message
                self._open_outbox()
        else:
            self._deadline = context.steady.exact() + context.settings.server.authentication_timeout
            assert self._keepalive is not None
            if not self._keepalive.waits:  # else it is asked already
                self._keepalive.ping()
        self._due = AT_ONCE
        peer.greeted = True
        self._membership.greeted(self)
        if not (self.peer.corked or peer.closing):
            self._pump()

    def _reply_to_handshake(self, token: Token) -> None:
        peer = self.peer
        epoch = self._membership.epoch(peer) if "ack" in peer.capabilities else None
        frame = handshake_reply(self._context, peer, token, epoch, self._lists_capabilities)
        self.tell("handshakeComplete", frame)

    # Identity

    def _introduce(self, key: DeviceKey, facts: DeviceFacts) -> None:
        """Take the name and the facts of the peer's device."""
        context, peer = self._context, self.peer
        peer.key = key
        peer.facts = facts
        self._membership.named(self, key)
        if self._keepalive is None:
            liveness = Liveness(context.settings.ping, context.steady.now, context.random)
            self._keepalive = KeepAlive(liveness, self._writer, key.bot_name, context)

    def _authenticate(self, proof: type, signed: bool = True, key_id: str | None = None) -> Device:
        """Note a valid proof (a token: of C{key_id}), or that none is demanded."""
        context, peer = self._context, self.peer
        assert peer.key is not None and peer.facts is not None and self._keepalive is not None
        self._membership.may_prove(self, peer.key, signed)
        peer.signed = signed
        if key_id is None:
            key_id = context.authentication.key_id(peer.key, signed)
        peer.key_id = key_id
        peer.state = NEXT[peer.state, proof]
        peer.authenticated = True
        self._device = device = self._membership.attach(self, peer.key, peer.facts)
        if not peer.capabilities:
            self._transport.kernel.keep_trying()
        self._keepalive.liveness.is_of(device.responsiveness, context.steady.now)
        self._quality_judged()
        self._throttle.authenticated(device)
        self._due = AT_ONCE
        if not self._waits_for_store:
            self._open_outbox()
        if peer.state is State.KNOWN:
            wait = max(0.0, peer.made_at + KNOWN_SECONDS - context.steady.exact())
            # In another turn, for a handshake may be here that has not been read yet.
            context.call_later(wait, partial(context.call_soon, self._expect_no_handshake))
        if self._doubt is not None:
            self._end_doubt()
        elif peer.state is State.KNOWN:
            self._measure()
        return device

    def _measure(self) -> None:
        """Have a device pinged whose clock was never measured, behind what it is told now."""
        key = self.peer.key
        assert key is not None
        if self.peer.signed and self._context.devices.clock_lead(key) is None:
            self._context.call_soon(self._ping_to_measure)

    def _ping_to_measure(self) -> None:
        if not self.peer.closing and self._keepalive is not None and not self._keepalive.waits:
            self._keepalive.ping()
            self.wake()

    def _sign(self, device: Device) -> None:
        """Note the first signature of a device that was let in without one."""
        peer = self.peer
        assert peer.key is not None and peer.facts is not None
        peer.signed = True
        peer.key_id = self._context.authentication.key_id(peer.key, True)
        self._membership.ask_approval(device, peer.facts, True)
        self._end_doubt()

    def _open_outbox(self) -> None:
        """Begin to send what waits for the device."""
        assert self._device is not None
        self._writer.outbox = self._device.open_outbox(self.peer.capabilities)

    def _expect_no_handshake(self) -> None:
        """Leave once nothing is owed or half read, unless a handshake comes: it will be back."""
        if self.peer.state is State.KNOWN and self._leaving is None:
            left = self._deadline - self._context.steady.exact()
            self._leave(CloseReason.NO_HANDSHAKE, max(0.0, left))
