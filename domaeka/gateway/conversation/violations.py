"""Violations of the protocol, and the reaction to each."""

from collections import deque
from typing import Final, NamedTuple

from twisted.logger import Logger

from domaeka.errors import CloseReason, ErrorCode, WireError
from domaeka.gateway.authentication import AuthRefused
from domaeka.gateway.context import Context
from domaeka.gateway.peer import Peer
from domaeka.policies.auth import AuthFault

#: Bad frames within this many seconds that end a connection.  Source: docs/protocol.md, "Errors".
ERRORS_ALLOWED: Final = 10
ERRORS_SECONDS: Final = 60.0

_FATAL_REASONS: Final = {
    ErrorCode.FRAME_TOO_LARGE: CloseReason.FRAME_TOO_LARGE,
    ErrorCode.BAD_HANDSHAKE: CloseReason.BAD_HANDSHAKE,
    ErrorCode.RATE_LIMITED: CloseReason.RATE_LIMITED,
    ErrorCode.SERVER_FULL: CloseReason.SERVER_FULL,
    ErrorCode.AUTH_FAILED: CloseReason.AUTHENTICATION_FAILED,
}

_log = Logger()


class Reaction(NamedTuple):
    """
    Reaction to a violation.

    @ivar notified: whether the peer gets an error.
    @ivar reason: the close reason; L{None}: the connection goes on.
    """

    notified: bool
    reason: CloseReason | None = None


class Violations:
    """
    Violations of a connection, made for its first one.

    @ivar work_refused: whether the peer was notified that the server takes no more messages.
    """

    __slots__ = ("_clock_fault_notified", "_times", "work_refused")

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=ERRORS_ALLOWED)
        self._clock_fault_notified = False
        self.work_refused = False

    def judge(self, error: WireError, now: float, in_handshake: bool) -> Reaction:
        """
        Judge a violation.

        @param in_handshake: whether the proof in a handshake is wrong, which is fatal.
        """
        if error.fatal or in_handshake:
            return Reaction(True, _FATAL_REASONS.get(error.code, CloseReason.BAD_STREAM))
        if isinstance(error, AuthRefused) and error.fault is AuthFault.WRONG_TIME:
            # No attack, but a phone whose clock is off.
            before, self._clock_fault_notified = self._clock_fault_notified, True
            return Reaction(not before)
        self._times.append(now)
        many = len(self._times) == ERRORS_ALLOWED and now - self._times[0] <= ERRORS_SECONDS
        return Reaction(True, CloseReason.TOO_MANY_ERRORS if many else None)


def note_clock_fault(context: Context, peer: Peer, skew: float, signature: str) -> None:
    """Note that the phone's clock is wrong by C{skew} seconds, which is no attack."""
    context.limits.clock_fault(peer.address, signature)
    if not context.metrics.pools.may_log(peer.address, context.steady.now):
        return
    _log.warn(
        "{peer}: right signature, wrong time: the phone's clock is off, {skew_seconds} s "
        "ahead of ours",
        peer=peer,
        skew_seconds=round(skew, 3),
    )
