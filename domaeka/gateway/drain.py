"""
A decent stop: phones are told, what was accepted is answered, connections end in order.
"""

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from domaeka.errors import CloseReason
from domaeka.gateway.registry import Registry
from domaeka.messages import encode_shutdown

#: How often a drain looks which connections owe nothing any more, in seconds.
DRAIN_STEP_SECONDS = 0.05
#: Connections closed in one step: 200 a second, so that the phones do not all come back at once.
CLOSED_A_STEP = 10


class Drain:
    """
    Empty a server of its phones, in bounded time.

    Each is told to come back at a time of its own; each is closed as soon as it owes nothing.
    """

    log = Logger()

    def __init__(self, registry: Registry, reactor: IReactorTime) -> None:
        """@param reactor: what its steps are scheduled with."""
        self._registry = registry
        self._reactor = reactor
        self._steps = LoopingCall(self._step)
        self._steps.clock = reactor
        self._done: Deferred[None] | None = None
        self._cut_at = 0.0
        self._close_at = 0.0

    def begin(self, reason: str) -> "Deferred[None]":
        """
        Tell every phone, and close each once it owes nothing.  The listeners are shut already.

        @param reason: what phones are told, a word.
        @return: fires when no connection is left: C{shutdown.drain_timeout} from now at the
            latest.
        """
        if self._done is not None:
            raise RuntimeError("a drain runs already")
        registry = self._registry
        settings = registry.parts.settings
        timeout = settings.shutdown.drain_timeout
        now = registry.parts.seconds()
        # Lingering is part of the time.
        self._close_at = now + timeout - min(settings.socket.linger_seconds, timeout / 2)
        self._cut_at = now + timeout
        registry.draining = True
        after = settings.shutdown.reconnect_after
        told = 0
        for session in registry:
            if session.key is not None:
                wait = after + registry.parts.random.random() * after
                session.send("serverShutdown", encode_shutdown(reason, wait))
                if session.device is not None:
                    session.device.outbox.stay_away(now + wait)
                told += 1
        self.log.info(
            "draining: {count} connections, {told} phones told, {timeout} s at most",
            count=len(registry),
            told=told,
            timeout=timeout,
        )
        self._done = Deferred()
        self._steps.start(DRAIN_STEP_SECONDS).addErrback(self._failed)
        return self._done

    def cut_short(self) -> None:
        """End every connection now, in order."""
        self._close_at = self._cut_at = self._registry.parts.seconds()

    def _step(self) -> None:
        now = self._registry.parts.seconds()
        if now >= self._cut_at:
            for session in self._registry:
                session.cut()
        elif now >= self._close_at:
            for session in self._registry:
                session.close(CloseReason.SHUTDOWN)
        else:
            closed = 0
            for session in self._registry:
                if closed < CLOSED_A_STEP and not session.closing and session.owes_nothing:
                    session.close(CloseReason.SHUTDOWN)
                    closed += 1
        if not self._registry.connections:
            self._steps.stop()
            self._finish()

    def _failed(self, failure: Failure) -> None:
        self.log.failure("the drain has failed: connections are cut", failure=failure)
        for session in self._registry:
            session.cut()
        self._finish()

    def _finish(self) -> None:
        done, self._done = self._done, None
        if done is not None:
            self.log.info("drained")
            done.callback(None)
