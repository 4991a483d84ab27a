"""
The connection under a conversation: what is written to it, when it is read, how it ends.

L{Conversation} says what is read from it and answered.
"""

from typing import Final

from twisted.logger import Logger

from domaeka.errors import CloseReason, ErrorCode
from domaeka.gateway.context import SWEEP_SECONDS, Context
from domaeka.gateway.conversation.figures import brief_of, ended_as, name_of, view_of
from domaeka.gateway.conversation.handshake import release_token
from domaeka.gateway.conversation.keepalive import KeepAlive
from domaeka.gateway.conversation.states import HALF_CLOSED_SECONDS, sooner
from domaeka.gateway.device import Device
from domaeka.gateway.doubts import Doubt
from domaeka.gateway.flow.throttle import Throttle
from domaeka.gateway.flow.writer import Writer
from domaeka.gateway.joints import Membership, Transport
from domaeka.gateway.peer import Peer, State, is_health_check
from domaeka.gateway.views import ConnectionFigures
from domaeka.policies.liveness import FINISH_SECONDS, GONE_SECONDS, LATE_SECONDS
from domaeka.schema import Connection
from domaeka.wire import Reply, encode_error, encode_replay

#: Least time between two notices of replays to a connection, in seconds.
REPLAY_SECONDS: Final = 60.0
#: Most signatures that are looked for in what is not served of a connection: those of all lines of
#: a phone that may still come while it closes, 256 bytes each.  A line without a right one counts
#: as many: whoever has no key gets 5 ms of work.
MAX_LOOKS: Final = 8_192
IN_VAIN: Final = 128
#: Least time between two pings of a peer in doubt, in seconds; half of the longest.
DOUBT_SECONDS: Final = 1.0
#: Earlier than any time: due at the next sweep.
AT_ONCE: Final = 0.0

_log = Logger()


class Carrier:
    """
    A conversation as far as it knows no frames.

    Times are those of the steady clock, in seconds, where not said otherwise.

    @ivar peer: facts of the peer, and the state of the conversation.
    """

    __slots__ = (
        "_context",
        "_deadline",
        "_device",
        "_doubt",
        "_due",
        "_keepalive",
        "_leaving",
        "_looks_left",
        "_membership",
        "_peer_finished",
        "_replay_told_at",
        "_throttle",
        "_token",
        "_transport",
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
        self._looks_left = MAX_LOOKS
        self._replay_told_at = -REPLAY_SECONDS
        self._doubt: Doubt | None = None  # L{None}: there is none, as usual
        self._peer_finished = False
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

    def expected(self, line: bytes) -> None:
        self._context.authentication.not_served(line, self.peer)

    def not_read(self, data: bytes) -> bool:
        if self._looks_left > 0:
            found = self._context.authentication.not_served(data, self.peer)
            self._looks_left -= found or IN_VAIN
        return self._looks_left > 0

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
        if self._doubt is not None:
            self._doubt.release()
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

    def signature_replayed(self, peer: Peer) -> None:
        now = self._context.steady.now
        if now < self._replay_told_at + REPLAY_SECONDS:
            return
        self._replay_told_at = now
        _log.warn(
            "{peer}: a signature of it came from {address}, too: somebody listens to its line",
            peer=self.peer,
            address=peer.address,
        )
        if self.peer.authenticated:
            self.tell("replay", encode_replay())

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
        self._due = AT_ONCE

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
        if not self._throttle.open:
            self._transport.look_ahead()
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
        if self._doubt is not None:
            self._ping_doubtful(self._doubt, now)
        if self.peer.state is State.READY:
            self._keep_alive(now, judging)
        else:
            self._judge_unready(now, judging)

    def _work_out_due(self) -> float:
        """Time of the next thing to do, if nothing happens before."""
        busy = self._leaving is not None or not self._writer.idle or not self._throttle.open
        if busy or self._doubt is not None or self._transport.kernel.in_flight:
            return AT_ONCE
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

    def _ping_doubtful(self, doubt: Doubt, now: float) -> None:
        """Ping a peer in doubt again, whose clock is not known by one pong."""
        keepalive = self._keepalive
        if keepalive is not None and now >= doubt.ping_due and not keepalive.waits:
            doubt.ping_due = now + DOUBT_SECONDS * (1 + self._context.random.random())
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

    def _fail(self) -> None:
        """Close after an error of our own, which costs this conversation only."""
        self._context.metrics.errors.labels(ErrorCode.INTERNAL).inc()
        self.close(CloseReason.INTERNAL, ErrorCode.INTERNAL, "an error of the server")

    # Reading, writing, and its end

    def _pump(self) -> None:
        """Write what waits."""
        writer = self._writer
        sent = writer.bytes_sent
        writer.pump()
        if writer.bytes_sent != sent or not writer.idle:
            self._due = AT_ONCE  # to see it acknowledged
        keepalive = self._keepalive
        if writer.outbox is not None and writer.outbox.files_wait and keepalive is not None:
            keepalive.files_wait()
            self._due = AT_ONCE
        if keepalive is not None and keepalive.waits and keepalive.pumped(self._context.steady.now):
            self._due = AT_ONCE
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
            self._due = AT_ONCE
            self._transport.pause_reading()
            self._transport.look_ahead()

    def _quality_judged(self) -> None:
        """Note the quality after a ping was answered or missed."""
        keepalive, device = self._keepalive, None if self.peer.closing else self._device
        if device and keepalive and device.graded(keepalive.liveness.quality.grade):
            self._context.events.graded(name_of(self.peer), keepalive.view())

    def _leave(self, reason: CloseReason, seconds: float) -> None:
        """Close once idle, C{seconds} from now at the latest."""
        until = self._context.steady.exact() + seconds
        self._leaving = sooner(self._leaving, reason, until)
        self._due = AT_ONCE
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
        self._due = AT_ONCE if self.peer.reads else self._deadline
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
