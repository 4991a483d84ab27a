"""
What a peer is told that does wrong, and when that ends its connection.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from twisted.logger import Logger

from domaeka.errors import CloseReason, ErrorCode, WireError
from domaeka.gateway.verifier import AuthRefused
from domaeka.messages import encode_error
from domaeka.policies.auth import AuthFault

if TYPE_CHECKING:
    from domaeka.gateway.registry import Registry
    from domaeka.gateway.session import Session

#: Bad frames within this many seconds that end a connection.  Source: docs/protocol.md, "Errors".
ERRORS_ALLOWED: Final = 10
ERRORS_SECONDS: Final = 60.0

_FATAL_REASONS: Final = {
    ErrorCode.FRAME_TOO_LARGE: CloseReason.FRAME_TOO_LARGE,
    ErrorCode.BAD_HANDSHAKE: CloseReason.BAD_HANDSHAKE,
    ErrorCode.SERVER_FULL: CloseReason.SERVER_FULL,
    ErrorCode.AUTH_FAILED: CloseReason.AUTHENTICATION_FAILED,
}


class Faults:
    """What one connection did wrong.  Most never do: it is made for the first."""

    log = Logger()

    __slots__ = ("_clock_fault_told", "_registry", "_session", "_times", "_work_refused")

    def __init__(self, session: Session, registry: Registry) -> None:
        self._session = session
        self._registry = registry
        self._times: deque[float] = deque(maxlen=ERRORS_ALLOWED)
        self._clock_fault_told = False
        self._work_refused = False

    def refused(self, error: WireError) -> None:
        """Answer a bad frame; end the conversation if it is fatal, or one too many."""
        session = self._session
        parts = self._registry.parts
        parts.metrics.errors.labels(error.code).inc()
        if error.code is ErrorCode.AUTH_FAILED and not isinstance(error, AuthRefused):
            parts.metrics.auth_failures.labels(AuthFault.MALFORMED).inc()
        if error.fatal:
            reason = _FATAL_REASONS.get(error.code, CloseReason.BAD_STREAM)
            session.close(reason, error.code, error.text)
            return
        if isinstance(error, AuthRefused):
            if error.fault is AuthFault.WRONG_TIME:
                if not self._clock_fault_told:
                    self.clock_is_off()
                    session.send("error", encode_error(error.code, error.text))
                return
            if error.fault is AuthFault.WRONG_SIGNATURE and session.device is None:
                parts.limits.failed_signature(session.address)
        times = self._times
        now = self._registry.steady.now
        times.append(now)
        if len(times) == ERRORS_ALLOWED and now - times[0] <= ERRORS_SECONDS:
            session.close(CloseReason.TOO_MANY_ERRORS, error.code, error.text)
        else:
            session.send("error", encode_error(error.code, error.text))

    def refuse_work(self) -> None:
        """The server stops: say so, once."""
        if not self._work_refused:
            self._work_refused = True
            self._session.send(
                "error", encode_error(ErrorCode.SHUTTING_DOWN, "the server takes no more messages")
            )

    def clock_is_off(self) -> None:
        """The phone's clock is off, which is no attack."""
        self._clock_fault_told = True
        self._registry.parts.limits.clock_fault(self._session.address)
        self.log.warn(
            "{session}: right signature, wrong time: the phone's clock is off",
            session=self._session,
        )
