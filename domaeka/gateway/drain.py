"""
A decent stop: phones are told, what was accepted is answered, connections end in order.
"""

from math import ceil, inf

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from domaeka.errors import CloseReason
from domaeka.gateway.registry import Registry
from domaeka.gateway.session import Session
from domaeka.messages import encode_shutdown

#: How often a drain looks which connections owe nothing any more, in seconds.
DRAIN_STEP_SECONDS = 0.05
#: Connections closed in one step: 200 a second, so that the phones do not all come back at once;
#: more only where the time would not suffice for all.
CLOSED_A_STEP = 10
#: How long connections may still hand over what is written when a drain is cut short, in seconds.
LAST_SECONDS = 1.0
#: What phones are told when a drain is called off, with C{reconnect_after} 0.
CALLED_OFF = "called off"
#: How often the log says how far a drain has come, in seconds.
REPORT_SECONDS = 5.0


class DrainReport(msgspec.Struct):
    """
    How a drain goes.

    @ivar told: phones that were told to come back later.
    @ivar connections: how many there are still.
    @ivar pending: messages that are not answered yet.
    @ivar seconds_left: until all are cut off.
    """

    running: bool = False
    told: int = 0
    connections: int = 0
    pending: int = 0
    seconds_left: float = 0.0


class Drain:
    """
    Empty a server of its phones, in bounded time.

    Each is told to come back at a time of its own; each is closed as soon as it owes nothing.

    @ivar over: whether it has ended: no connection is left.
    """

    log = Logger()

    def __init__(self, registry: Registry, reactor: IReactorTime) -> None:
        """@param reactor: what its steps are scheduled with."""
        self._registry = registry
        self._reactor = reactor
        self._steps: LoopingCall | None = None
        self._waiting: list[Deferred[bool]] = []
        self._told: set[int] = set()  # numbers of connections
        self._reason = ""
        self.over = False
        self._short = False
        self._cut_at = 0.0
        self._close_at = 0.0
        self._report_at = 0.0

    @property
    def running(self) -> bool:
        """Whether it has begun, and has neither ended nor been called off."""
        return self._steps is not None

    @property
    def report(self) -> DrainReport:
        """How it goes."""
        registry = self._registry
        left = max(0.0, self._cut_at - registry.exact_now) if self.running else 0.0
        return DrainReport(
            self.running,
            len(self._told),
            registry.connections,
            sum(device.pending for device in registry.devices()),
            round(left, 1),
        )

    def begin(self, reason: str) -> "Deferred[bool]":
        """
        Tell every phone, and close each once it owes nothing.  The ports are shut already.

        @param reason: what phones are told, a word.
        @return: as of L{finished}.
        """
        if self.running:
            raise RuntimeError("a drain runs already")
        registry = self._registry
        settings = registry.parts.settings
        timeout = settings.shutdown.drain_timeout
        now = registry.exact_now
        if self._short:
            timeout = min(timeout, LAST_SECONDS)
        # Lingering is part of the time.
        self._close_at = now + timeout - min(settings.socket.linger_seconds, timeout / 2)
        self._cut_at = now + timeout
        self._report_at = now + REPORT_SECONDS
        registry.draining = True
        self._reason = reason
        self._told.clear()
        for session in registry:
            registry.guarded(session, self._tell, session)
        self.log.info(
            "draining: {count} connections, {told} phones told, {timeout} s at most",
            count=len(registry),
            told=len(self._told),
            timeout=timeout,
        )
        self._steps = LoopingCall(self._step)
        self._steps.clock = self._reactor
        finished = self.finished()
        registry.tell_change("drain", "begun")
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
        Serve on, and say so.  Phones that are closed already come back by themselves.

        @return: whether one ran.
        """
        if not self.running:
            return False
        self._registry.draining = False
        for session in self._registry:
            self._registry.guarded(session, _tell_called_off, session)
        self.log.info("the drain is called off: {count} connections", count=len(self._registry))
        self._registry.tell_change("drain", "called off")
        self._finish(False)
        return True

    def cut_short(self) -> None:
        """
        Close every connection now, and cut it L{LAST_SECONDS} later; likewise in a drain that is
        yet to begin.
        """
        self._short = True
        self._close_at = self._registry.exact_now
        self._cut_at = min(self._cut_at, self._close_at + LAST_SECONDS)

    def _tell(self, session: Session) -> None:
        """Tell a phone when to come back, once it is known who it is."""
        if session.key is None or session.closing or session.number in self._told:
            return
        self._told.add(session.number)
        parts = self._registry.parts
        after = parts.settings.shutdown.reconnect_after
        wait = after + parts.random.random() * after
        session.send("serverShutdown", encode_shutdown(self._reason, wait))
        if session.device is not None:
            session.device.outbox.stay_away(parts.seconds() + wait)

    def _step(self) -> None:
        registry = self._registry
        now = registry.exact_now
        if now >= self._cut_at:
            self._cut_all()
        else:
            self._close_some(self._close_at - now)
        emptied = not registry.connections and not self._work_waits(now)
        if emptied or now >= self._cut_at + LAST_SECONDS:
            self.log.info("drained")
            registry.tell_change("drain", "done")
            self._finish(True)
        elif now >= self._report_at:
            self._report_at = now + REPORT_SECONDS
            report = self.report
            self.log.info(
                "draining: {count} connections, {pending} messages to answer, {left} s left",
                count=report.connections,
                pending=report.pending,
                left=report.seconds_left,
            )

    def _close_some(self, left: float) -> None:
        """
        Close phones, those first that owe nothing.

        @param left: seconds in which all must be closed.
        """
        steps = max(left / DRAIN_STEP_SECONDS, 1.0)
        here = len(self._registry)
        count = max(CLOSED_A_STEP, ceil(here / steps))
        # The last of them begin to go when there is just the time for it.
        forced = here > (steps - 1.0) * CLOSED_A_STEP
        for idle in (True, False) if forced else (True,):
            for session in self._registry:
                if count and not session.closing:
                    count -= self._registry.guarded(session, self._close, session, idle) or False

    def _close(self, session: Session, idle: bool) -> bool:
        """
        Close a phone.

        @param idle: whether only if it owes nothing.
        @return: whether it is closed.
        """
        if idle and not session.owes_nothing:
            return False
        self._tell(session)  # one that has shaken hands only since the beginning
        session.close(CloseReason.SHUTDOWN)
        return True

    def _cut_all(self) -> None:
        for session in self._registry:
            self._registry.guarded(session, session.cut)

    def _work_waits(self, now: float) -> bool:
        """Whether answers are yet to come to phones that are not here: they are kept for them."""
        return now < self._close_at and any(device.pending for device in self._registry.devices())

    def _failed(self, failure: Failure) -> None:
        self.log.failure("the drain has failed: connections are cut", failure)
        self._cut_all()
        self._finish(True)

    def _finish(self, emptied: bool) -> None:
        self.over = emptied
        steps, self._steps = self._steps, None
        if steps is not None and steps.running:
            steps.stop()
        waiting, self._waiting = self._waiting, []
        for deferred in waiting:
            deferred.callback(emptied)


def _tell_called_off(session: Session) -> None:
    if session.key is not None:
        session.send("serverShutdown", encode_shutdown(CALLED_OFF, 0.0))
    if session.device is not None:
        session.device.outbox.stay_away(-inf)
