"""
A stand-in phone: L{BridgeScript} with a reactor, sockets and the habit of coming back.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from domaeka.errors import DomaekaError
from domaeka.phonewire import Identity, Said
from domaeka.policies.auth import Signer
from domaeka.testing.network import Scheduler
from domaeka.testing.script import SCRIPTS, BridgeScript, PhoneRecord, ScriptVersion, Shown

#: The phone of the samples.
STANDARD_IDENTITY: Final = Identity(
    bot_name="가게봇",
    device_id="a1b2c3d4e5f60718",
    mac_address="02:00:00:00:00:00",
    ip_address="192.168.0.13",
    device_info="samsung SM-G991N (Android 13, API 33)",
)
#: How long a phone stays away from a lost connection, and at most from a closed port, in
#: seconds.  Source: docs/protocol.md, "Old phones".
COMEBACK_SECONDS: Final = 4.0
MAX_COMEBACK_SECONDS: Final = 60.0
#: How long the old run of a reloaded script lives on, in seconds.  Source: docs/protocol.md,
#: "Handshake".
RELOAD_OVERLAP_SECONDS: Final = 4.0


class Comeback:
    """Where a phone connects next, and after how long."""

    def __init__(self, servers: int) -> None:
        """@param servers: how many there are in its list."""
        self.server = 0
        self._servers = servers
        self._tries = 0

    def took(self) -> None:
        """A TCP connection was made: the count starts anew."""
        self._tries = 0

    def failed(self) -> None:
        """Connecting failed: the next server's turn."""
        self.server = (self.server + 1) % self._servers

    def delay(self) -> float:
        """How long to wait before the next try, in seconds: 4, 8, 16, 32, 60, 60 …"""
        delay = min(COMEBACK_SECONDS * (1 << self._tries), MAX_COMEBACK_SECONDS)
        self._tries = min(self._tries + 1, 10)
        return delay


class _PhoneProtocol(Protocol):
    def __init__(self, run: "_Run") -> None:
        self._run = run

    # IProtocol

    def connectionMade(self) -> None:
        self._run.connection_made(self.transport)

    def dataReceived(self, data: bytes) -> None:
        self._run.data_received(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._run.connection_lost()


class _PhoneFactory(Factory):
    noisy = False

    def __init__(self, run: "_Run") -> None:
        self._run = run

    # IProtocolFactory

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        return _PhoneProtocol(self._run)


class _Run:
    """One run of the script with its socket."""

    def __init__(
        self,
        reactor: Scheduler,
        servers: Sequence[Any],
        script: BridgeScript,
        reconnect_scale: float,
        changed: Callable[[], None],
    ) -> None:
        self.script = script
        self.ended: Deferred[None] = Deferred()  # fires once it is over for good
        self._reactor = reactor
        self._servers = servers
        self._scale = reconnect_scale
        self._changed = changed
        self._comeback = Comeback(len(servers))
        self._factory = _PhoneFactory(self)
        self._stopped = False
        self._paused = False
        self._lost = False  # until the script knows it, which may be deaf
        self._attempt: Deferred[Any] | None = None
        self._transport: Any = None
        self._comeback_call: Any = None
        self._wake_call: Any = None
        self._retire_call: Any = None

    def connect(self) -> None:
        """Try the server whose turn it is."""
        self._comeback_call = None
        self._attempt = attempt = self._servers[self._comeback.server].connect(self._factory)
        attempt.addErrback(self._connect_failed)

    def retire(self) -> None:
        """A newer run has begun: end a little later."""
        self._retire_call = self._reactor.callLater(RELOAD_OVERLAP_SECONDS * self._scale, self.stop)

    def stop(self) -> None:
        """End for good."""
        self._stopped = True
        for call in (self._comeback_call, self._wake_call, self._retire_call):
            if call is not None and call.active():
                call.cancel()
        if self._transport is not None:
            self._transport.loseConnection()
            return
        if self._attempt is not None:
            self._attempt.cancel()
        self._finish()

    def drop(self) -> None:
        """Break the connection as a lost network does, without a word."""
        if self._transport is not None:
            self._transport.abortConnection()

    def write(self, data: bytes) -> None:
        """Send bytes of which the script knows nothing."""
        if self._transport is None:
            raise DomaekaError("not connected")
        self._transport.write(data)

    def carry(self) -> None:
        """Do what the script has come to."""
        script = self.script
        output = script.take_output()
        transport = self._transport
        if transport is not None:
            if output:
                transport.write(output)
            if script.closing:
                transport.loseConnection()
        if script.deaf_until is not None:
            self._sleep(script.deaf_until)
        elif self._lost and not script.online:
            self._lost = False
            self._stay_away()
        self._changed()

    # What happens to it

    def connection_made(self, transport: Any) -> None:
        self._attempt = None
        self._transport = transport
        if self._stopped:
            transport.loseConnection()
            return
        self._comeback.took()
        self.script.connection_made()
        self.carry()

    def data_received(self, data: bytes) -> None:
        self.script.bytes_received(data)
        self.carry()

    def connection_lost(self) -> None:
        self._transport = None
        self._paused = False
        if self._stopped:
            self._finish()
            return
        self._lost = True
        self.script.connection_lost()
        self.carry()

    def _connect_failed(self, failure: Failure) -> None:
        self._attempt = None
        if not self._stopped:
            self._comeback.failed()
            self._stay_away()
            self._changed()

    def _stay_away(self) -> None:
        delay = self._comeback.delay() * self._scale
        self._comeback_call = self._reactor.callLater(delay, self.connect)

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
        if self._paused and self.script.deaf_until is None and not self.script.closing:
            self._paused = False
            if self._transport is not None:
                self._transport.resumeProducing()
        self.carry()

    def _finish(self) -> None:
        if not self.ended.called:
            self.ended.callback(None)


class FakePhone:
    """
    A phone in the field: a bridge script that nobody updates, on a device that comes and goes.

    Works with any reactor and endpoints handed in: real ones, or a C{Clock} and a
    L{VirtualServer<domaeka.testing.VirtualServer>}.
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
        @param servers: the endpoints to which it connects, in the order of its list.
        @param secret_key: with C{salt}, the secrets pasted into its script; L{None}: it does not
            sign.
        @param script: a key of L{SCRIPTS}, or a version of your own.
        @param identity: who it says it is; the version is the script's.
        @param clock_offset: how much its clock is fast, in seconds.
        @param reconnect_scale: what its times away are multiplied by: below 1 for tests in a
            hurry.
        """
        self.identity = identity
        self.script = SCRIPTS[script] if isinstance(script, str) else script
        self.record = PhoneRecord()
        self._sign: Callable[[str], str] | None = None
        if secret_key is not None:
            # What checks is of no use here, so neither are the window and the clock.
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
        """Whether the script believes that it is connected."""
        return self._run.script.online

    @property
    def replies(self) -> list[Shown]:
        """What it sent into rooms."""
        return self.record.replies

    def texts(self, room: str | None = None) -> list[str]:
        """The texts that it sent into rooms, or into one of them."""
        return [
            reply.text
            for reply in self.record.replies
            if reply.text is not None and room in (None, reply.room)
        ]

    # Its life

    def start(self) -> None:
        """Start the script: it connects at once."""
        self._run.connect()

    def stop(self) -> Deferred[None]:
        """End for good.  Fires when all its sockets are closed."""
        runs = [self._run, *self._old_runs]
        for run in runs:
            run.stop()
        return gatherResults([run.ended for run in runs]).addCallback(lambda _: None)

    def reload(self) -> None:
        """Reload the script: the new run connects at once, the old one dies 4.0 s later."""
        self._old_runs = [run for run in self._old_runs if not run.ended.called]
        self._old_runs.append(self._run)
        self._run.retire()
        self._run = self._new_run()
        self._run.connect()

    def drop(self) -> None:
        """Lose the network: the connection breaks, and the phone is back after 4.0 s."""
        self._run.drop()

    def deafen(self, seconds: float) -> None:
        """
        Read nothing for some seconds, as in doze.

        What is said meanwhile goes out, behind the end of the server's side too.
        """
        self._run.script.deafen(seconds)
        self._run.carry()

    def set_clock(self, offset: float) -> None:
        """Set its clock: C{offset} seconds fast."""
        self._clock_offset = self._run.script.clock_offset = offset

    # What it says

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
        """
        Somebody writes in a room: it is sent, or queued while offline.

        @param log_id: by default one that no other message of this run has.
        """
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
        self._run.carry()

    def repeat(self) -> None:
        """Send the last chat again, byte for byte the same."""
        self._run.script.repeat()
        self._run.carry()

    def fail_writes(self, count: int = 1, delivered: bool = True) -> None:
        """
        Let the next lines fail: the script hangs up and keeps them for the next connection.

        @param count: how many lines, one a connection.
        @param delivered: whether the bytes reach the server nevertheless.
        """
        self._run.script.fail_writes(count, delivered)

    def write(self, data: bytes) -> None:
        """
        Send bytes that no script would.

        @raise DomaekaError: not connected.
        """
        self._run.write(data)

    # What became of it

    def when(self, condition: Callable[[], bool]) -> Deferred[None]:
        """Fires when C{condition} holds; it is asked again after whatever happens to the phone."""
        if condition():
            return succeed(None)
        fired: Deferred[None] = Deferred(self._forget_waiting)
        self._waiting.append((condition, fired))
        return fired

    def when_replies(self, count: int) -> Deferred[list[Shown]]:
        """Fires with all replies when there are C{count} or more."""
        replies = self.record.replies
        return self.when(lambda: len(replies) >= count).addCallback(lambda _: list(replies))

    def expect(self, *texts: str) -> Deferred[None]:
        """
        Wait for as many replies as there are C{texts}.

        The Deferred fails with C{AssertionError} unless they are exactly these, in this order.
        """

        def compare(replies: list[Shown]) -> None:
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
        return _Run(self._reactor, self._servers, script, self._scale, self._look_again)

    def _look_again(self) -> None:
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
