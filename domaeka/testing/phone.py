"""A test double of a phone: L{BridgeScript} with a reactor and sockets; it reconnects."""

from collections.abc import Callable, Sequence
from typing import Any, Final

from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from domaeka.errors import DomaekaError
from domaeka.policies.auth import Signer
from domaeka.testing.network import Scheduler
from domaeka.testing.script import SCRIPTS, BridgeScript, PhoneRecord, ScriptVersion, SentMessage
from domaeka.wire import Identity, Said

#: The phone in the examples.
STANDARD_IDENTITY: Final = Identity(
    bot_name="가게봇",
    device_id="a1b2c3d4e5f60718",
    client_type="MessengerBotR",
    mac_address="02:00:00:00:00:00",
    ip_address="192.168.0.13",
    device_info="samsung SM-G991N (Android 13, API 33)",
)
#: Delay of a reconnection, and its maximum while connecting fails, in seconds.  Source:
#: docs/protocol.md, "Old phones".
RECONNECT_SECONDS: Final = 4.0
MAX_RECONNECT_SECONDS: Final = 60.0
#: Time for which the old run of a reloaded script goes on, in seconds.  Source: docs/protocol.md,
#: "Handshake".
RELOAD_OVERLAP_SECONDS: Final = 4.0


class Reconnection:
    """Choice of the next server, and of the delay before it is tried."""

    def __init__(self, servers: int) -> None:
        """@param servers: the length of the phone's list of servers."""
        self.server = 0
        self._servers = servers
        self._tries = 0

    def connected(self) -> None:
        """A TCP connection is made: the delays start again."""
        self._tries = 0

    def failed(self) -> None:
        """Connecting failed: the next server follows."""
        self.server = (self.server + 1) % self._servers

    def delay(self) -> float:
        """The delay before the next attempt, in seconds: 4, 8, 16, 32, 60, 60 …"""
        delay = min(RECONNECT_SECONDS * (1 << self._tries), MAX_RECONNECT_SECONDS)
        self._tries = min(self._tries + 1, 10)
        return delay


class _Run(Protocol):
    """A run of the script: the protocol of its connections, which follow each other."""

    def __init__(
        self,
        reactor: Scheduler,
        servers: Sequence[Any],
        script: BridgeScript,
        reconnect_scale: float,
        changed: Callable[[], None],
    ) -> None:
        self.script = script
        self.ended: Deferred[None] = Deferred()  # fires once the run has ended
        self._reactor = reactor
        self._servers = servers
        self._scale = reconnect_scale
        self._changed = changed
        self._reconnection = Reconnection(len(servers))
        self._factory = Factory.forProtocol(lambda: self)
        self._factory.noisy = False
        self._stopped = False
        self._paused = False
        self._lost = False  # until the script knows it, which may be blocked
        self._attempt: Deferred[Any] | None = None
        self._transport: Any = None
        self._reconnect_call: Any = None
        self._wake_call: Any = None
        self._retire_call: Any = None

    def connect(self) -> None:
        """Try the current server of the list."""
        self._reconnect_call = None
        self._attempt = attempt = self._servers[self._reconnection.server].connect(self._factory)
        attempt.addErrback(self._connect_failed)

    def retire(self) -> None:
        """A newer run has begun: end after L{RELOAD_OVERLAP_SECONDS}."""
        self._retire_call = self._reactor.callLater(RELOAD_OVERLAP_SECONDS * self._scale, self.stop)

    def stop(self) -> None:
        """End the run."""
        self._stopped = True
        for call in (self._reconnect_call, self._wake_call, self._retire_call):
            if call is not None and call.active():
                call.cancel()
        if self._transport is not None:
            self._transport.loseConnection()
            return
        if self._attempt is not None:
            self._attempt.cancel()
        self._finish()

    def drop(self) -> None:
        """Break the connection without notice, as a lost network does."""
        if self._transport is not None:
            self._transport.abortConnection()

    def write(self, data: bytes) -> None:
        """Send bytes that do not come from the script."""
        if self._transport is None:
            raise DomaekaError("not connected")
        self._transport.write(data)

    def apply_script(self) -> None:
        """Carry out what the script has decided."""
        script = self.script
        output = script.take_output()
        transport = self._transport
        if transport is not None:
            if output:
                transport.write(output)
            if script.closing:
                transport.loseConnection()
        if script.blocked_until is not None:
            self._sleep(script.blocked_until)
        elif self._lost and not script.online:
            self._lost = False
            self._schedule_reconnect()
        self._changed()

    # IProtocol

    def connectionMade(self) -> None:
        self._attempt = None
        self._transport = self.transport
        if self._stopped:
            self._transport.loseConnection()
            return
        self._reconnection.connected()
        self.script.connection_made()
        self.apply_script()

    def dataReceived(self, data: bytes) -> None:
        self.script.bytes_received(data)
        self.apply_script()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._transport = None
        self._paused = False
        if self._stopped:
            self._finish()
            return
        self._lost = True
        self.script.connection_lost()
        self.apply_script()

    def _connect_failed(self, failure: Failure) -> None:
        self._attempt = None
        if not self._stopped:
            self._reconnection.failed()
            self._schedule_reconnect()
            self._changed()

    def _schedule_reconnect(self) -> None:
        delay = self._reconnection.delay() * self._scale
        self._reconnect_call = self._reactor.callLater(delay, self.connect)

    def _sleep(self, until: float) -> None:
        if self._stopped:
            return
        delay = max(0.0, until - self._reactor.seconds())
        if self._wake_call is None:
            self._wake_call = self._reactor.callLater(delay, self._wake)
        else:
            self._wake_call.reset(delay)
        if self._transport is not None and not self._paused and not self.script.closing:
            self._paused = True
            self._transport.pauseProducing()

    def _wake(self) -> None:
        self._wake_call = None
        self.script.wake()
        if self._paused and self.script.blocked_until is None and not self.script.closing:
            self._paused = False
            if self._transport is not None:
                self._transport.resumeProducing()
        self.apply_script()

    def _finish(self) -> None:
        if not self.ended.called:
            self.ended.callback(None)


class FakePhone:
    """
    A phone in the field: an old bridge script on a device whose connection breaks.  It works with
    any reactor and endpoints: real ones, or a C{Clock} and a L{domaeka.testing.VirtualServer}.
    """

    def __init__(
        self,
        reactor: Scheduler,
        servers: Sequence[Any],
        secret_key: str | None,
        salt: str = "",
        *,
        script: str | ScriptVersion = "3.3.3",
        identity: Identity = STANDARD_IDENTITY,
        clock_offset: float = 0.0,
        reconnect_scale: float = 1.0,
    ) -> None:
        """
        @param servers: the endpoints in the phone's list, in order.
        @param secret_key: with C{salt}, the secrets in its script; L{None}: it does not sign.
        @param script: a key of L{SCRIPTS}, or a version of your own.
        @param identity: the phone's identity; its version is that of the script.
        @param clock_offset: time by which its clock is fast, in seconds.
        @param reconnect_scale: factor for its delays: below 1 for fast tests.
        """
        self.identity = identity
        self.script = SCRIPTS[script] if isinstance(script, str) else script
        self.record = PhoneRecord()
        self._sign: Callable[[str], str] | None = None
        if secret_key is not None:
            # Signing needs neither the window nor the clock.
            self._sign = Signer([secret_key], salt, 0.0, reactor.seconds).sign
        self._reactor = reactor
        self._servers = servers
        self._clock_offset = clock_offset
        self._scale = reconnect_scale
        self._waiting: list[tuple[Callable[[], bool], Deferred[None]]] = []
        self._run = self._new_run()
        self._old_runs: list[_Run] = []

    @property
    def online(self) -> bool:
        """True if the script believes that it is connected."""
        return self._run.script.online

    @property
    def replies(self) -> list[SentMessage]:
        """Messages that it sent into rooms."""
        return self.record.replies

    def texts(self, room: str | None = None) -> list[str]:
        """Texts that it sent into rooms, or into one room."""
        return [
            reply.text
            for reply in self.record.replies
            if reply.text is not None and room in (None, reply.room)
        ]

    # Start and stop

    def start(self) -> None:
        """Start the script: it connects at once."""
        self._run.connect()

    def stop(self) -> Deferred[None]:
        """End all runs.  Fires when all sockets are closed."""
        runs = [self._run, *self._old_runs]
        for run in runs:
            run.stop()
        return gatherResults([run.ended for run in runs]).addCallback(lambda _: None)

    def reload(self) -> None:
        """Reload the script: the new run connects at once, the old one ends 4.0 s later."""
        self._old_runs = [run for run in self._old_runs if not run.ended.called]
        self._old_runs.append(self._run)
        self._run.retire()
        self._run = self._new_run()
        self._run.connect()

    def drop(self) -> None:
        """Lose the network: the connection breaks, and the phone reconnects after 4.0 s."""
        self._run.drop()

    def block(self, seconds: float) -> None:
        """Read nothing for some seconds, as in doze; what is said meanwhile is still sent."""
        self._run.script.block(seconds)
        self._run.apply_script()

    def set_clock(self, offset: float) -> None:
        """Set its clock C{offset} seconds fast."""
        self._clock_offset = self._run.script.clock_offset = offset

    # Chat

    def say(
        self,
        text: str,
        room: str = "테스트방",
        channel_id: str | None = "18398338829933617",
        sender: str = "보내는이",
        *,
        user_hash: str | None = "0a1b2c",
        is_group: bool = True,
        is_mention: bool = False,
        log_id: str | None = None,
    ) -> None:
        """Send a message from a room, or queue it while offline; C{log_id} is unique by default."""
        said = Said(
            room=room,
            sender=sender,
            text=text,
            channel_id=channel_id,
            is_group=is_group,
            is_mention=is_mention,
            log_id=log_id,
            user_hash=user_hash,
        )
        self._run.script.say(said)
        self._run.apply_script()

    def repeat(self) -> None:
        """Send the last chat message again, with the same bytes."""
        self._run.script.repeat()
        self._run.apply_script()

    def fail_writes(self, count: int = 1, delivered: bool = True) -> None:
        """Let the next lines fail: see L{BridgeScript.fail_writes}."""
        self._run.script.fail_writes(count, delivered)

    def write(self, data: bytes) -> None:
        """Send bytes that no script sends.  @raise DomaekaError: the phone is not connected."""
        self._run.write(data)

    # Waiting

    def when(self, condition: Callable[[], bool]) -> Deferred[None]:
        """Fires once C{condition} holds; it is checked after everything that happens."""
        if condition():
            return succeed(None)
        fired: Deferred[None] = Deferred(self._forget_waiting)
        self._waiting.append((condition, fired))
        return fired

    def when_replies(self, count: int) -> Deferred[list[SentMessage]]:
        """Fires with all replies when there are C{count} or more."""
        replies = self.record.replies
        return self.when(lambda: len(replies) >= count).addCallback(lambda _: list(replies))

    def expect(self, *texts: str) -> Deferred[None]:
        """Fires once there are as many replies as C{texts}; fails unless they equal C{texts}."""

        def compare(replies: list[SentMessage]) -> None:
            shown = [reply.text for reply in replies]
            if shown != list(texts):
                raise AssertionError(f"expected {list(texts)!r:.2000}, got {shown!r:.2000}")

        return self.when_replies(len(texts)).addCallback(compare)

    def _new_run(self) -> _Run:
        script = BridgeScript(
            self.script,
            self.identity,
            self._sign,
            self.record,
            self._reactor.seconds,
            self._clock_offset,
        )
        return _Run(self._reactor, self._servers, script, self._scale, self._check_waiting)

    def _check_waiting(self) -> None:
        if not self._waiting:
            return
        met: list[tuple[Callable[[], bool], Deferred[None]]] = []
        still: list[tuple[Callable[[], bool], Deferred[None]]] = []
        for waiting in self._waiting:
            (met if waiting[0]() else still).append(waiting)
        self._waiting = still
        for _, fired in met:
            fired.callback(None)

    def _forget_waiting(self, fired: Deferred[None]) -> None:
        self._waiting = [waiting for waiting in self._waiting if waiting[1] is not fired]
