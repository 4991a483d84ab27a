"""The kernels at both ends of a connection: what the peer's takes, and what ours is told."""

import fcntl
import socket
import struct
import sys
import termios
from typing import Any, Final

from domaeka.gateway.context import Context
from domaeka.policies.liveness import HOLD_SECONDS, STALLED_SECONDS
from domaeka.schema import KernelView
from domaeka.twisted_internals import unsent_bytes

#: Offsets in C{struct tcp_info}; times in microseconds.  Source: linux/tcp.h.
_TCP_INFO_BYTES: Final = 128
_IN_FLIGHT: Final = struct.Struct("=24xI")
_RTT: Final = struct.Struct("=68xII")
_RETRANSMITS: Final = struct.Struct("=100xI")
_ACKNOWLEDGED: Final = struct.Struct("=120xQ")
#: Source: linux/tcp.h, 6.15: the longest pause between two retransmissions, in milliseconds.
_TCP_RTO_MAX_MS: Final = 44
#: How often what a phone's kernel does not acknowledge is sent again at least, in milliseconds:
#: so soon it notices that its network is back.
RETRANSMIT_MS: Final = 2000
#: The same where the kernel has no C{TCP_RTO_MAX_MS}: it retransmits by the end of a
#: C{TCP_USER_TIMEOUT} that is put off each second; the process may be held up for the rest of it.
PUT_OFF_MS: Final = 5000
#: The kernel gives up a phone so long after C{socket.user_timeout_ms} only, in milliseconds: twice
#: C{GONE_SECONDS}, for by then its conversation is over.  The sockets of a process that was killed
#: are not tried for ever.
GIVEN_UP_MS: Final = 1_848_000


class PeerKernel:
    """
    The progress of the peer's kernel with what is written: a
    L{PeerKernel<domaeka.gateway.joints.PeerKernel>}.  Where nobody tells, all is taken at once.
    """

    __slots__ = ("_context", "_silence", "_socket", "_taken", "is_silent")

    def __init__(self, lowest: Any, context: Context) -> None:
        """@param lowest: the transport of the socket."""
        self._socket = lowest
        self._context = context
        self.is_silent = False
        # The bytes that it has taken, and since when no more, in steady time.
        self._taken: tuple[int, float] | None = None
        # While something is in flight: the bytes acknowledged, and since when no more, in steady
        # time, and in that of our kernel, which hold-ups of the process do not stop.
        self._silence: tuple[int, float, float] | None = None

    @property
    def backlog_bytes(self) -> int:
        try:
            queued = fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
            in_kernel = int.from_bytes(queued, sys.byteorder)
        except (OSError, AttributeError, ValueError):
            in_kernel = 0  # not a socket, or closed already
        return unsent_bytes(self._socket) + in_kernel

    @property
    def in_flight(self) -> bool:
        return self._silence is not None

    def is_stalled(self, now: float, sent_bytes: int, excused: bool, timeout: float | None) -> bool:
        taken = sent_bytes - self.backlog_bytes
        if excused or self._taken is None or self._taken[0] != taken:
            self._taken = taken, now
        return now - self._taken[1] >= (timeout or STALLED_SECONDS)

    def excuse(self) -> None:
        self._taken = None

    def silent_for(self, now: float) -> float:
        info = self._info()
        if info is None or not _IN_FLIGHT.unpack_from(info)[0]:
            self._silence = None
            self.is_silent = False
            return 0.0
        (acknowledged,) = _ACKNOWLEDGED.unpack_from(info)
        if self._silence is None or self._silence[0] != acknowledged:
            self._silence = acknowledged, now, self._context.seconds()
        seconds = now - self._silence[1]
        self.is_silent = seconds >= HOLD_SECONDS
        return seconds

    def keep_trying(self) -> None:
        timeout_ms = self._context.settings.socket.user_timeout_ms + GIVEN_UP_MS
        self._set_user_timeout(timeout_ms)
        if not self._set_option(_TCP_RTO_MAX_MS, RETRANSMIT_MS) and self._silence is not None:
            silent_ms = int((self._context.seconds() - self._silence[2]) * 1000)
            self._set_user_timeout(min(silent_ms + PUT_OFF_MS, timeout_ms))

    def set_user_timeout(self) -> None:
        """Have our kernel give the peer up after C{socket.user_timeout_ms}, as at first."""
        self._set_user_timeout(self._context.settings.socket.user_timeout_ms)

    def figures(self) -> KernelView | None:
        info = self._info()
        if info is None:
            return None
        rtt, variation = _RTT.unpack_from(info)
        return KernelView(rtt / 1e6, variation / 1e6, *_RETRANSMITS.unpack_from(info))

    def _info(self) -> bytes | None:
        """A C{struct tcp_info}; L{None} where there is none."""
        try:
            info: bytes = self._socket.getHandle().getsockopt(
                socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES
            )
        except (OSError, AttributeError):
            return None
        return info if len(info) == _TCP_INFO_BYTES else None

    def _set_user_timeout(self, milliseconds: int) -> None:
        self._set_option(getattr(socket, "TCP_USER_TIMEOUT", None), milliseconds)

    def _set_option(self, option: int | None, value: int) -> bool:
        """@return: whether the kernel has it."""
        if option is None:
            return False
        try:
            self._socket.getHandle().setsockopt(socket.IPPROTO_TCP, option, value)
        except (OSError, AttributeError):
            return False
        return True
