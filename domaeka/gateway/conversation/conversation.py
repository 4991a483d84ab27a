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
from domaeka.gateway.context import SWEEP_SECONDS, Context
from domaeka.gateway.conversation.figures import brief_of, ended_as, name_of, view_of
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
from domaeka.gateway.conversation.states import HALF_CLOSED_SECONDS, KNOWN_SECONDS, NEXT, sooner
from domaeka.gateway.conversation.violations import Violations, note_clock_fault
from domaeka.gateway.device import Device
from domaeka.gateway.flow.throttle import Throttle
from domaeka.gateway.flow.writer import Writer
from domaeka.gateway.joints import Membership, Transport
from domaeka.gateway.peer import Peer, State, is_health_check
from domaeka.gateway.views import ConnectionFigures
from domaeka.interfaces import DeviceFacts, DeviceKey
from domaeka.policies.auth import AuthFault
from domaeka.policies.liveness import FINISH_SECONDS, GONE_SECONDS, LATE_SECONDS, Liveness
from domaeka.schema import Connection
from domaeka.wire import (
    Ack,
    Auth,
    Chat,
    DeliveryReport,
    Handshake,
    Inbound,
    Pong,
    Probe,
    Reply,
    encode_ack,
    encode_error,
    encode_probe,
)

#: Earlier than any time: due at the next sweep.
_AT_ONCE: Final = 0.0

_log = Logger()


class Conversation:
    """
    A phone's conversation: a L{LineReceiver} to its connection, a L{Member} to the directory.

    Times are those of the steady clock, in seconds, where not said otherwise.

    @ivar peer: facts of the peer, and the state of the conversation.
    """

    __slots__ = (
        "_context",
        "_deadline",
        "_device",
        "_due",
        "_handshaken",
        "_keepalive",
        "_leaving",
        "_lists_capabilities",
        "_membership",
        "_peer_finished",
        "_throttle",
        "_token",
        "_transport",
        "_violations",
        "_waits_for_store",
        "_writer",
        "peer",
    )

    def __init__(
        self, context: Context, membership: Membership, transport: Transport, address: str
    ) -> None:
        """@param address: the peer's."""
        now = context.steady.exact()
        self.peer = Peer(membership.next_number(), address, now, transport.port_outlives)
        self.peer.over_rate = transport.over_rate
        self._context = context
        self._membership = membership
        self._transport = transport
        self._writer = Writer(transport, context, self._media_left, self.wake)
        self._throttle = Throttle(self._writer, context, self.peer)
        self._device: Device | None = None
        self._keepalive: KeepAlive | None = None
        self._violations: Violations | None = None
        self._peer_finished = False
        self._handshaken = False  # a handshake has come
        self._lists_capabilities = False  # the handshake listed capabilities
        self._waits_for_store = False  # before the reply to the handshake
        self._token: str | None = None
        self._leaving: tuple[CloseReason, float] | None = None  # and the deadline
        self._deadline = now + context.settings.server.handshake_timeout
        self._due = self._deadline  # the time of the next thing to do

    @property
    def is_idle(self) -> bool:
        device = self._device
        if self._is_held:  # what waits is kept for the next connection
            return device is None or not device.pending
        return self._writer.is_idle and (device is None or device.is_idle)

    @property
    def _is_held(self) -> bool:
        """True while messages wait for the path to go on, or for the next connection."""
        return self._writer.is_shut or self._transport.kernel.is_silent

    # L{LineReceiver}: called by its connection

    def connected(self) -> None:
        self._membership.admit(self)

    def received(self, data: bytes) -> bool:
        peer = self.peer
        if not peer.bytes_received:
            peer.like_check = is_health_check(data)
        peer.bytes_received += len(data)
        self._context.metrics.bytes_received.value += len(data)
        now = self._context.steady.now
        peer.last_heard = now
        if self._keepalive is not None:
            self._keepalive.liveness.last_heard = now
        if self._transport.kernel.is_silent and not peer.closing:
            self._judge_path(now, False)
        return self.peer.reads

    def read(self, next_line: Callable[[], bytes | None], most: int) -> int:
        self.peer.corked = True
        lines_left, size = most, 0
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
                self._refuse(error)
            except Exception:
                _log.failure("{peer}: our own mistake", peer=self.peer)
                self._fail()
        self._throttle.allowance.bytes_came(size)
        self.peer.corked = False
        self.wake()
        return most - lines_left

    def drained(self) -> None:
        self._writer.drained()
        self.wake()

    def peer_finished(self) -> None:
        if self.peer.closing:
            self._transport.disconnect()
            return
        self._peer_finished = True
        self.close(self.peer.reason or CloseReason.PEER_CLOSED, within=HALF_CLOSED_SECONDS)

    def connection_lost(
        self, reason: CloseReason, unsent_bytes: int, not_tls: bool = False
    ) -> None:
        peer = self.peer
        if not_tls:
            peer.like_check = False  # no health check does that
        read_all = peer.reason is not None and reason is CloseReason.PEER_CLOSED
        self._writer.release(unsent_bytes, read_all)
        self._writer.end()
        if peer.reason is None:
            peer.reason = reason
        device = self._device
        if device is not None and device.connection is self and self._keepalive is not None:
            self._keepalive.liveness.ended()
        closed = ended_as(self._context, peer, self._writer, self._keepalive)
        self._membership.remove(self, closed)
        self._stop()
        if self._token is not None:
            release_token(self._context, peer, self._token)
        self._context.metrics.closes.labels(peer.reason).inc()

    # L{Member}: called by the directory, the device and the lifecycle

    def wake(self) -> None:
        """Write what waits, judge whether to read on, and leave if it is time."""
        if self.peer.corked or self.peer.closing:
            return
        self._pump()
        self._judge_reading()
        if self._leaving is not None:
            self._close_if_leaving()

    def tell(self, event: str, frame: bytes) -> None:
        if self.peer.closing:
            return
        self._writer.put_urgent(event, frame)
        if not self.peer.corked:
            self._pump()

    def close(
        self,
        reason: CloseReason,
        code: ErrorCode | None = None,
        text: str = "",
        *,
        within: float = 0.0,
        cut: bool = False,
    ) -> None:
        if within:
            self._leave(reason, within)
            return
        taken_over = reason is CloseReason.TAKEN_OVER
        if taken_over and self._is_held and not self.peer.capabilities:
            self._hear_late_lines()
            return
        if taken_over:  # what waits goes out on the newer connection, and must not arrive twice
            cut |= self._writer.release(self._transport.unsent_bytes)
        if self.peer.closing:
            self.peer.reads = False
        else:
            self._close(reason, code, text)
        if cut:
            self._transport.abort()

    def apply_settings(self) -> None:
        settings = self._context.settings
        self._throttle.apply()
        self._transport.limit_lines(settings.server.max_frame_bytes)
        if self._keepalive is not None:
            self._keepalive.liveness.apply(settings.ping, self._context.steady.now)
        self._due = _AT_ONCE

    # Time

    def attend(self, now: float, judging: bool) -> None:
        if now < self._due:
            return
        if self.peer.closing:
            if self.peer.reads:
                self._judge_reading()
                self._transport.kernel.silent_for(now)
                self._transport.kernel.keep_trying()
                if not self._context.serving.takes_work:  # late lines would be refused
                    self.peer.reads = False
                    linger = self._context.settings.socket.linger_seconds
                    self._deadline = min(self._deadline, now + linger)
            if now >= self._deadline:
                self._transport.abort()
            return
        self._judge_reading()
        self._throttle.attend(now)
        self._close_if_leaving()
        if self.peer.closing or self._judge_path(now, judging):
            return
        idle = self._writer.idle
        if not idle and self._is_stalled(now) and judging:
            self.close(CloseReason.TOO_SLOW)
            self._transport.abort()
            return
        if not idle and self._device is not None:
            self._device.outbox.phone_reads()
        self._due = self._work_out_due()  # sooner, if something is written now
        if self._writer.outbox is not None and self._writer.outbox.files_wait:
            self._pump()
        if self.peer.state is State.READY:
            self._keep_alive(now, judging)
        else:
            self._judge_unready(now, judging)

    def _work_out_due(self) -> float:
        """Time of the next thing to do, if nothing happens before."""
        busy = self._leaving is not None or not self._writer.idle or not self._throttle.open
        if busy or self._transport.kernel.in_flight:
            return _AT_ONCE
        if self.peer.state is State.READY and self._keepalive is not None:
            return self._keepalive.liveness.due
        return self._deadline

    def _keep_alive(self, now: float, judging: bool) -> None:
        """Send a ping, or give the phone up."""
        keepalive = self._keepalive
        assert keepalive is not None
        if judging and keepalive.is_unanswered(now, self._transport.kernel):
            self._context.metrics.ping_timeouts.inc()
            self.close(CloseReason.PING_TIMEOUT)
        elif keepalive.liveness.ping_due(now):
            keepalive.ping()
            self._pump()

    def _judge_unready(self, now: float, judging: bool) -> None:
        """End the conversation if the peer takes too long to name or to prove itself."""
        state = self.peer.state
        if judging and now >= self._deadline and not self._waits_for_store:
            if state is State.GREETED:
                text = "no signature came in time"
                self.close(CloseReason.AUTHENTICATION_TIMEOUT, ErrorCode.AUTH_REQUIRED, text)
            elif state is State.NEW:
                self.close(CloseReason.HANDSHAKE_TIMEOUT)
            else:
                self.close(CloseReason.NO_HANDSHAKE)

    def _is_stalled(self, now: float) -> bool:
        """True when the peer's kernel has taken nothing for too long."""
        blocked = self._keepalive is not None and now < self._keepalive.liveness.blocked_until
        # A phone that is not read from may hang in its own write; a drain does not wait for that.
        paused = not self._throttle.open and self._context.serving.takes_work
        timeout = self._context.settings.ping.timeout if paused else None
        return self._transport.kernel.is_stalled(now, self._writer.bytes_sent, blocked, timeout)

    def _judge_path(self, now: float, judging: bool) -> bool:
        """
        Hold messages back while nothing is acknowledged; finish a phone's line in time.

        @return: True if a phone acknowledges nothing, or has only just begun to: its answer to a
            ping may be on its way.
        """
        writer, kernel, was_held = self._writer, self._transport.kernel, self._is_held
        seconds = kernel.silent_for(now) if self._device is not None else 0.0
        held = self._is_held
        if was_held and not held:
            self.wake()
        if not (was_held or held) or self.peer.capabilities:
            return False
        kernel.keep_trying()
        away = self._context.settings.socket.user_timeout_ms
        if not writer.is_shut:
            if judging and seconds >= FINISH_SECONDS:
                self._stop_writing()
        elif not seconds or seconds >= (away / 1000 or GONE_SECONDS):
            self.close(CloseReason.UNACKNOWLEDGED)
            if seconds:
                self._deadline = now + GONE_SECONDS
        return True

    def _stop_writing(self) -> None:
        """Finish the connection, and hear on: its answers go out on the next one."""
        self.peer.reason = CloseReason.UNACKNOWLEDGED
        self._writer.shut()
        self._transport.stop_writing()
        _log.info("{peer}: acknowledges nothing: finished, and still heard", peer=self.peer)

    def _hear_late_lines(self) -> None:
        """The device has a newer connection, on which late lines of this one are answered."""
        if not self._writer.is_shut:
            self._stop_writing()
        if not self.peer.closing:
            self.close(CloseReason.UNACKNOWLEDGED)
        self._deadline = min(self._deadline, self._context.steady.exact() + LATE_SECONDS)

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
            raise WireError(ErrorCode.AUTH_REQUIRED, "a handshake or signed chat must come first")
        if type(message) is Chat:
            self._chat_received(message, line)
        else:
            self._other_received(message, line, target)

    def _other_received(self, message: Inbound, line: bytes, target: State) -> None:
        frames = self._context.metrics.frames_received
        if type(message) is Pong:
            frames.labels("pong").inc()
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

    def _chat_received(self, chat: Chat, line: bytes) -> None:
        """Take a message.  @raise WireError: its proof is wrong, or it cannot be inflated."""
        context, peer = self._context, self.peer
        context.metrics.messages_received.value += 1
        self._throttle.allowance.message_came()
        acknowledges = chat.client_id is not None and "ack" in peer.capabilities
        verdict = context.authentication.judge(chat.auth, peer.key, peer.number, line)
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
            self._due = _AT_ONCE
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
        verdict = context.authentication.judge(pong.auth, peer.key, peer.number, line)
        if verdict is Verdict.REPEAT:
            context.metrics.repeats_dropped.inc()
            return
        if self._device is None:
            self._authenticate(Pong, pong.auth is not None)
        elif not peer.signed and pong.auth is not None:
            self._sign(self._device)
        if pong.monitoring is not None:
            peer.monitoring = pong.monitoring
            peer.monitored_at = context.steady.exact()
        assert self._keepalive is not None
        self._keepalive.pong_received(pong, context.steady.now)
        self._quality_judged()

    # Violations

    def _refuse(self, error: WireError, in_handshake: bool = False) -> None:
        """
        Answer a violation; end the conversation if it is fatal, or if there were too many.

        @param in_handshake: whether the proof in a handshake was wrong.
        """
        context, peer = self._context, self.peer
        context.metrics.errors.labels(error.code).inc()
        if isinstance(error, AuthRefused):
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

    def _fail(self) -> None:
        """Close after an error of our own, which costs this conversation only."""
        self._context.metrics.errors.labels(ErrorCode.INTERNAL).inc()
        self.close(CloseReason.INTERNAL, ErrorCode.INTERNAL, "an error of the server")

    # Handshake

    def _handshake_received(self, handshake: Handshake, line: bytes, target: State) -> None:
        peer = self.peer
        if peer.key is not None and peer.key != (handshake.bot_name, handshake.device_id):
            self.close(
                CloseReason.OTHER_DEVICE,
                ErrorCode.BAD_HANDSHAKE,
                "a second handshake named another device",
            )
        elif not self._handshaken:
            self._handshaken = True
            self._first_handshake(handshake, line, target)
        elif not self._waits_for_store:
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
            if needless or handshake.auth is None or self._proof_holds(handshake.auth, line):
                context.devices.enter(key, facts)
                self._greet(Token())
            return
        peer.capabilities = taken_capabilities(handshake, context)
        if handshake.uptime is not None:
            peer.app_started_at = context.wall() - handshake.uptime
        self._writer.dialect = handshake.dialect
        proven = needless
        if handshake.auth is not None and not needless:
            proven = self._proof_holds(handshake.auth, line)
            if not proven:
                return
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

    def _proof_holds(self, auth: Auth, line: bytes) -> bool:
        """Judge the proof in a handshake; a wrong one ends the connection."""
        authentication, peer = self._context.authentication, self.peer
        try:
            verdict = authentication.judge(auth, peer.key, peer.number, line)
            if verdict is Verdict.REPEAT:
                raise authentication.refusal(AuthFault.REPLAY, peer.key)
        except AuthRefused as error:
            self._refuse(error, in_handshake=True)
            return False
        return True

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
            if self._writer.outbox is None:  # else in use, after a signed message
                self._open_outbox()
        else:
            self._deadline = context.steady.exact() + context.settings.server.authentication_timeout
            assert self._keepalive is not None
            self._keepalive.ping()
        self._due = _AT_ONCE
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
        self._due = _AT_ONCE
        if not self._waits_for_store:
            self._open_outbox()
        if peer.state is State.KNOWN:
            wait = max(0.0, peer.made_at + KNOWN_SECONDS - context.steady.exact())
            # In another turn, for a handshake may be here that has not been read yet.
            context.call_later(wait, partial(context.call_soon, self._expect_no_handshake))
        return device

    def _sign(self, device: Device) -> None:
        """Note the first signature of a device that was let in without one."""
        peer = self.peer
        assert peer.key is not None and peer.facts is not None
        peer.signed = True
        peer.key_id = self._context.authentication.key_id(peer.key, True)
        self._membership.ask_approval(device, peer.facts, True)

    def _open_outbox(self) -> None:
        """Begin to send what waits for the device."""
        assert self._device is not None
        self._writer.outbox = self._device.open_outbox(self.peer.capabilities)

    # Reading, writing, and its end

    def _pump(self) -> None:
        """Write what waits."""
        writer = self._writer
        sent = writer.bytes_sent
        writer.pump()
        if writer.bytes_sent != sent or not writer.idle:
            self._due = _AT_ONCE  # to see it acknowledged
        keepalive = self._keepalive
        if writer.outbox is not None and writer.outbox.files_wait and keepalive is not None:
            keepalive.files_wait()
            self._due = _AT_ONCE
        if keepalive is not None and keepalive.waits and keepalive.pumped(self._context.steady.now):
            self._due = _AT_ONCE
            self._quality_judged()  # the ping before may have been missed

    def _media_left(self, reply: Reply) -> None:
        """Note that media block the phone for a while."""
        if self._keepalive is not None:
            self._keepalive.files_left(reply.blocked_seconds(self.peer.version))

    def _judge_reading(self) -> None:
        """Pause reading from a phone whose answers pile up; resume once half have gone."""
        throttle = self._throttle
        if throttle.calm or self._waits_for_store or not throttle.changed():
            return
        now = self._context.steady.now
        liveness = self._keepalive.liveness if self._keepalive is not None else None
        if throttle.open:
            self._transport.kernel.excuse()
            if liveness is not None:
                liveness.reading_resumed(now)
            self._transport.resume_reading()
        else:
            if liveness is not None:
                liveness.reading_paused(now)
            self._due = _AT_ONCE
            self._transport.pause_reading()

    def _quality_judged(self) -> None:
        """Note the quality after a ping was answered or missed."""
        keepalive, device = self._keepalive, None if self.peer.closing else self._device
        if device and keepalive and device.graded(keepalive.liveness.quality.grade):
            self._context.events.graded(name_of(self.peer), keepalive.view())

    def _expect_no_handshake(self) -> None:
        """Leave once nothing is owed or half read, unless a handshake comes: it will be back."""
        if self.peer.state is State.KNOWN and self._leaving is None:
            left = self._deadline - self._context.steady.exact()
            self._leave(CloseReason.NO_HANDSHAKE, max(0.0, left))

    def _leave(self, reason: CloseReason, seconds: float) -> None:
        """Close once idle, C{seconds} from now at the latest."""
        until = self._context.steady.exact() + seconds
        self._leaving = sooner(self._leaving, reason, until)
        self._due = _AT_ONCE
        if not self.peer.corked:
            self._close_if_leaving()

    def _close_if_leaving(self) -> None:
        """Close a leaving conversation that is idle, or at its deadline."""
        if self._leaving is not None and not self.peer.closing:
            reason, until = self._leaving
            more = reason is CloseReason.NO_HANDSHAKE and self._transport.unread_bytes
            if self._context.steady.exact() >= until or (self.is_idle and not more):
                self.close(reason)

    def _close(self, reason: CloseReason, code: ErrorCode | None, text: str) -> None:
        if self.peer.corked:
            self._pump()  # answers to the lines before
        self._stop()
        # Chat that comes before the phone sees our FIN is answered on its next connection.
        self.peer.reads = reason in (CloseReason.NO_HANDSHAKE, CloseReason.UNACKNOWLEDGED)
        self.peer.reason = reason
        may_linger = self._membership.closing(self)
        if reason is CloseReason.GAVE_WAY:
            self._transport.abort()
            return
        self._writer.unstage()
        if code is not None:
            self._writer.put_urgent("error", encode_error(code, text))
        self._writer.write_urgent()
        linger = LATE_SECONDS if self.peer.reads else self._context.settings.socket.linger_seconds
        self._deadline = self._context.steady.exact() + linger
        self._due = _AT_ONCE if self.peer.reads else self._deadline
        if not may_linger:
            self._deadline = self._due = self._context.steady.exact() + SWEEP_SECONDS
            self._transport.hang_up()
        elif self._peer_finished:
            self._transport.disconnect()
        elif not self._writer.is_shut:
            self._transport.finish()

    def _stop(self) -> None:
        """End all reading and writing."""
        self.peer.state = State.CLOSING
        self.peer.closing = True
        self.peer.reads = False

    def view(self) -> Connection:
        """All figures of it, as they are now; only once it has named its device."""
        tcp = self._transport.kernel.figures()
        return view_of(self._context, self.peer, self._writer, self._keepalive, self._device, tcp)

    def brief(self) -> ConnectionFigures:
        return brief_of(self.peer, self._writer, self._keepalive, self._device)
