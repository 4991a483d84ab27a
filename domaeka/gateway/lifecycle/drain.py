"""The drain: phones get a notice, accepted messages an answer, connections an orderly end."""

from math import ceil, inf

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from domaeka.errors import CloseReason
from domaeka.gateway.directory import Directory
from domaeka.gateway.joints import Member
from domaeka.gateway.serving import Step
from domaeka.wire import encode_shutdown

#: Period in which idle connections are closed, in seconds.
DRAIN_STEP_SECONDS = 0.05
#: Connections closed in a step: 200 a second, so that the phones do not all come back at once; more
#: only where the time would not suffice for all.
CLOSED_A_STEP = 10
#: Time to hand over what is written when a drain is cut short, in seconds.
LAST_SECONDS = 1.0
#: Least C{reconnect_after} at a port that outlives the process, in seconds; the most is twice that.
#: Source: docs/protocol.md, "Reconnecting": the shortest delay of a client, which takes the next
#: server in its list where it is to wait longer.
HELD_SECONDS = 0.25
#: Reason in the notice of a drain that is called off, with C{reconnect_after} 0.
CALLED_OFF = "called off"
#: Period of log lines on a drain, in seconds.
REPORT_SECONDS = 5.0


class DrainReport(msgspec.Struct):
    """
    State of a drain.

    @ivar told: phones that got the notice.
    @ivar connections: number of connections left.
    @ivar pending: messages that are not answered yet.
    @ivar seconds_left: until all connections are cut off.
    """

    running: bool = False
    told: int = 0
    connections: int = 0
    pending: int = 0
    seconds_left: float = 0.0


class Drain:
    """
    Empties a server of its phones, in bounded time.

    Each is asked to come back at a time of its own, and closed as soon as it is idle.
    """

    log = Logger()

    def __init__(self, directory: Directory, reactor: IReactorTime) -> None:
        self._context = directory.context
        self._registry = directory.registry
        self._admission = directory.admission
        self._reactor = reactor
        self._steps: LoopingCall | None = None
        self._waiting: list[Deferred[bool]] = []
        self._notified: set[int] = set()  # numbers of connections
        self._reason = ""
        self._short = False
        self._cut_at = 0.0
        self._close_at = 0.0
        self._report_at = 0.0

    @property
    def running(self) -> bool:
        """True from its beginning until it has ended or been called off."""
        return self._steps is not None

    @property
    def report(self) -> DrainReport:
        """Its state."""
        registry = self._registry
        left = max(0.0, self._cut_at - self._context.steady.exact()) if self.running else 0.0
        return DrainReport(
            self.running,
            len(self._notified),
            registry.connections,
            sum(device.pending for device in registry.devices()),
            round(left, 1),
        )

    def begin(self, reason: str) -> "Deferred[bool]":
        """
        Notify every phone, and close each once it is idle.  The ports are shut already.

        @param reason: a word for the notice.
        @return: as of L{finished}.
        """
        if self.running:
            raise RuntimeError("a drain runs already")
        settings = self._context.settings
        timeout = settings.shutdown.drain_timeout
        now = self._context.steady.exact()
        if self._short:
            timeout = min(timeout, LAST_SECONDS)
        # Lingering is part of the time.
        self._close_at = now + timeout - min(settings.socket.linger_seconds, timeout / 2)
        self._cut_at = now + timeout
        self._report_at = now + REPORT_SECONDS
        serving = self._context.serving
        if serving.may(Step.DRAIN):  # else the process is ending already
            serving.take(Step.DRAIN)
        self._reason = reason
        self._context.held.give_up()
        self._notified.clear()
        for member in self._registry:
            with self._registry.guard(member):
                self._notify(member)
        self.log.info(
            "draining: {count} connections, {told} phones told, {timeout_seconds} s at most",
            count=self._admission.taken,
            told=len(self._notified),
            timeout_seconds=timeout,
        )
        self._steps = LoopingCall(self._step)
        self._steps.clock = self._reactor
        finished = self.finished()
        self._context.events.changed("drain", "begun")
        self._steps.start(DRAIN_STEP_SECONDS).addErrback(self._failed)
        return finished

    def finished(self) -> "Deferred[bool]":
        """
        @return: fires with L{True} when no connection is left, C{shutdown.drain_timeout} after
            the beginning at the latest; with L{False} when it is called off.
        """
        if not self.running:
            return succeed(True)
        waiting: Deferred[bool] = Deferred()
        self._waiting.append(waiting)
        return waiting

    def call_off(self) -> bool:
        """
        Serve on, and notify phones.  Those that are closed already come back by themselves.

        @return: whether a drain ran.
        """
        if not self.running:
            return False
        self._context.serving.take(Step.CALL_OFF)
        for member in self._registry:
            with self._registry.guard(member):
                self._take_back(member)
        self.log.info("the drain is called off: {count} connections", count=self._admission.taken)
        self._context.events.changed("drain", "called off")
        self._finish(False)
        return True

    def cut_short(self) -> None:
        """
        Close every connection now, and cut it off L{LAST_SECONDS} later; likewise in a later drain.
        """
        self._short = True
        self._close_at = self._context.steady.exact()
        self._cut_at = min(self._cut_at, self._close_at + LAST_SECONDS)

    def _notify(self, member: Member) -> None:
        """
        Send the notice to a phone that has named itself, once.  Where connections wait for the next
        start, it may come back soon.
        """
        peer, context = member.peer, self._context
        if peer.key is None or peer.closing or peer.number in self._notified:
            return
        self._notified.add(peer.number)
        after = context.settings.shutdown.reconnect_after
        spread = 1.0 + context.random.random()
        told = min(after, HELD_SECONDS) if peer.port_outlives else after
        member.tell("serverShutdown", encode_shutdown(self._reason, told * spread))
        self._keep_for(member, context.seconds() + after * spread)

    def _take_back(self, member: Member) -> None:
        """Notify a phone that it may come back at once."""
        if member.peer.key is not None:
            member.tell("serverShutdown", encode_shutdown(CALLED_OFF, 0.0))
        self._keep_for(member, -inf)

    def _keep_for(self, member: Member, until: float) -> None:
        """Keep what waits for a phone, while it stays away until C{until}."""
        peer = member.peer
        if peer.authenticated and peer.key is not None:
            self._registry.get_or_create(peer.key).outbox.stay_away(until)

    def _step(self) -> None:
        registry = self._registry
        now = self._context.steady.exact()
        if now >= self._cut_at:
            self._cut_all()
        else:
            self._close_some(self._close_at - now)
        emptied = not registry.connections and not self._work_waits(now)
        if emptied or now >= self._cut_at + LAST_SECONDS:
            self.log.info("drained")
            self._context.events.changed("drain", "done")
            self._finish(True)
        elif now >= self._report_at:
            self._report_at = now + REPORT_SECONDS
            report = self.report
            self.log.info(
                "draining: {count} connections, {pending} messages to answer, {left_seconds} s "
                "left",
                count=report.connections,
                pending=report.pending,
                left_seconds=report.seconds_left,
            )

    def _close_some(self, left: float) -> None:
        """
        Close phones, idle ones first.

        @param left: time in which all have to be closed, in seconds.
        """
        steps = max(left / DRAIN_STEP_SECONDS, 1.0)
        here = self._admission.taken
        count = max(CLOSED_A_STEP, ceil(here / steps))
        # Busy phones are closed once the time just suffices for all.
        forced = here > (steps - 1.0) * CLOSED_A_STEP
        for idle in (True, False) if forced else (True,):
            for member in self._registry:
                if not count or member.peer.closing:
                    continue
                with self._registry.guard(member):
                    count -= self._close(member, idle)

    def _close(self, member: Member, idle: bool) -> bool:
        """Close a phone, or only if it is C{idle}.  @return: whether it was closed."""
        if idle and not member.is_idle:
            return False
        self._notify(member)  # it may have shaken hands since the beginning
        member.close(CloseReason.SHUTDOWN)
        return True

    def _cut_all(self) -> None:
        for member in self._registry:
            with self._registry.guard(member):
                member.close(CloseReason.SHUTDOWN, cut=True)

    def _work_waits(self, now: float) -> bool:
        """True while bots still work on answers, which are kept for phones that are gone."""
        return now < self._close_at and any(device.pending for device in self._registry.devices())

    def _failed(self, failure: Failure) -> None:
        self.log.failure("the drain has failed: connections are cut", failure)
        self._cut_all()
        self._finish(True)

    def _finish(self, emptied: bool) -> None:
        steps, self._steps = self._steps, None
        if steps is not None and steps.running:
            steps.stop()
        waiting, self._waiting = self._waiting, []
        for deferred in waiting:
            deferred.callback(emptied)
