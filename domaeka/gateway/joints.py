"""
Joints: the interfaces between the gateway's modules, each of which knows only those below it.

A connection is a L{Transport} to its conversation; a conversation is a L{Member} to the directory;
the directory is a L{Membership} to a conversation and L{AccessRules} to the ports.
"""

from collections.abc import Callable
from enum import Enum
from typing import Final, Protocol, TypeAlias

from domaeka.errors import CloseReason, ErrorCode
from domaeka.gateway.device import Connected, Device
from domaeka.gateway.peer import Peer
from domaeka.gateway.views import ClosedConnection, ConnectionFigures
from domaeka.interfaces import DeviceFacts, DeviceKey
from domaeka.schema import KernelView

#: Share of the limit of connections beyond which strangers that close or have no place, and those
#: that wait for their balancer, give way: they hold open files.
CLOSING_SHARE: Final = 0.5
#: The same for phones that close.
LATE_SHARE: Final = 1.0


class Entry(Enum):
    """
    The verdict on a connection at its beginning.

    C{BRIEF}: it comes over the rate of an address, or in spite of its ban, and has a moment to
    prove that it is a phone that is known there.
    """

    OPEN = "open"
    BRIEF = "brief"
    REFUSED = "refused"


class PeerKernel(Protocol):
    """
    The progress of the peer's kernel with what is written.  Times are steady, in seconds.

    @ivar is_silent: as of the last L{silent_for}: it has acknowledged nothing for too long, so that
        messages are better held.
    """

    is_silent: bool

    @property
    def backlog_bytes(self) -> int:
        """Bytes written that it has not taken."""

    @property
    def in_flight(self) -> bool:
        """As of the last L{silent_for}: bytes that were sent are not acknowledged."""

    def is_stalled(self, now: float, sent_bytes: int, excused: bool, timeout: float | None) -> bool:
        """
        True if it has taken nothing of what is written for too long.

        @param sent_bytes: the bytes written so far.
        @param excused: whether it need not take anything now.
        @param timeout: in seconds; L{None}: L{STALLED_SECONDS<domaeka.policies.liveness>}.
        """

    def excuse(self) -> None:
        """Restart the time for which nothing was taken."""

    def silent_for(self, now: float) -> float:
        """
        Time for which it has acknowledged nothing of what is in flight; what its window keeps back
        is not in flight.
        """

    def keep_trying(self) -> None:
        """
        Have our kernel retransmit every few seconds, and give the peer up late.

        To be called once at first, and then each second while nothing is acknowledged, after
        L{silent_for}.
        """

    def figures(self) -> KernelView | None:
        """Our kernel's figures of the connection; L{None} where it has none."""


class Transport(Protocol):
    """
    The connection under a conversation, as the conversation sees it.

    @ivar port_outlives: True if its port outlives the process: connections wait there meanwhile.
    @ivar over_rate: True if it was let in as L{Entry.BRIEF}.
    """

    port_outlives: bool
    over_rate: bool

    @property
    def kernel(self) -> PeerKernel:
        """The peer's kernel."""

    def write(self, data: bytes) -> bool:
        """
        Send, in order.  Only to be called once all before has been taken.

        @return: whether the kernel has it all; if not, C{drained} of the conversation follows.
        """

    def write_more(self, data: bytes) -> None:
        """Send behind what has not been taken yet."""

    @property
    def unsent_bytes(self) -> int:
        """Bytes written that the kernel has not taken."""

    def take_back(self) -> int:
        """
        Drop what is written and our kernel has not taken, unless TLS has encrypted it.

        @return: the number of these bytes.
        """

    @property
    def unread_bytes(self) -> int:
        """Bytes that came and were not read as lines yet."""

    def limit_lines(self, max_bytes: int) -> None:
        """Take no longer lines from now on."""

    def start_inflating(self) -> None:
        """Read all behind the last line as a deflate stream."""

    def pause_reading(self) -> None:
        """Deliver no more lines."""

    def look_ahead(self) -> None:
        """Call C{expected} of the conversation with the lines that wait to be delivered."""

    def resume_reading(self) -> None:
        """Deliver lines again."""

    def finish(self) -> None:
        """Send what is written, then a FIN; read on until the peer's FIN."""

    def stop_writing(self) -> None:
        """Send what is written, then a FIN; go on reading as before."""

    def disconnect(self) -> None:
        """Close once what is written has left."""

    def hang_up(self) -> None:
        """Close as soon as our kernel has what is written, without waiting for the peer."""

    def abort(self) -> None:
        """Close at once; what has not arrived is lost."""


class Member(Connected, Protocol):
    """A conversation, as the directory, a drain and a migration see it."""

    @property
    def is_idle(self) -> bool:
        """True when every message is answered, and every answer has left."""

    def attend(self, now: float, judging: bool) -> None:
        """
        Do what is due.

        @param now: the steady time, in seconds.
        @param judging: whether the sweep came in time, so that silence counts.
        """

    def brief(self) -> ConnectionFigures:
        """Figures for filters and orders; only once it has named its device."""

    def apply_settings(self) -> None:
        """Apply changed settings."""

    def tell(self, event: str, frame: bytes) -> None:
        """Send a frame ahead of the outbox.  @param event: its name, for the metric."""

    def signature_replayed(self, peer: Peer) -> None:
        """Tell the phone, and the log, that C{peer} has shown a signature of this connection."""

    def close(
        self,
        reason: CloseReason,
        code: ErrorCode | None = None,
        text: str = "",
        *,
        within: float = 0.0,
        cut: bool = False,
    ) -> None:
        """
        End the conversation: send the error, hand over what is written, finish.

        @param code: the error sent to the peer, with C{text}; L{None}: none.
        @param within: above 0: close once idle, in so many seconds at most.
        @param cut: cut the connection off, whatever is lost.
        """


class Membership(Protocol):
    """The directory, as a conversation sees it."""

    def next_number(self) -> int:
        """A number that no other connection has."""

    def admit(self, member: Member) -> None:
        """Give a new connection a place."""

    def named(self, member: Member, key: DeviceKey) -> None:
        """
        Note that a connection claims to be C{key}.

        @raise WireError: it has no place, and no claim to one by that name.
        """

    def doubted(self, member: Member) -> None:
        """Note that a connection has shown a right signature, and needs more than one pong."""

    def may_prove(self, member: Member, key: DeviceKey, signed: bool) -> None:
        """
        Make room for a connection that has just proven to be C{key}, ahead of L{attach}.

        @param signed: whether by a signature or a token.
        @raise WireError: there is no place for it, or it has not signed, and is to replace a
            connection that has.
        """

    def attach(self, member: Member, key: DeviceKey, facts: DeviceFacts) -> Device:
        """
        Give an authenticated connection to its device.  An older one of the device is closed with
        an error.
        """

    def ask_approval(self, device: Device, facts: DeviceFacts, signed: bool) -> None:
        """Look a device's approval up.  @param signed: whether it has signed."""

    def epoch(self, peer: Peer) -> str:
        """Epoch of a connection's message numbers, even before it has authenticated."""

    def greeted(self, member: Member) -> None:
        """Note that the first handshake of a connection has been answered."""

    def moved(self, peer: Peer) -> None:
        """Note that a client has arrived at the new server."""

    def replayed(self, number: int, peer: Peer) -> None:
        """Note that C{peer} showed a signature of the connection with this number."""

    def refuses_server(self, key: DeviceKey) -> bool:
        """True if C{key} is a server whose phones cannot move here now."""

    def closing(self, member: Member) -> bool:
        """
        Note that a connection begins to close.

        @return: whether it may take its time; if not, it is to hang up.
        """

    def remove(self, member: Member, closed: ClosedConnection) -> None:
        """Note that a connection has ended."""


class AccessRules(Protocol):
    """Access rules: the directory, as the ports see it."""

    def entry(self, address: str) -> Entry:
        """Judge a peer at C{address} that connects; a refusal is counted."""

    def refused(self, reason: CloseReason) -> None:
        """Count a peer that is turned away."""


class LineReceiver(Protocol):
    """A conversation, as the connection under it sees it."""

    @property
    def peer(self) -> Peer:
        """The peer at its other end."""

    def connected(self) -> None:
        """Begin: the connection is there."""

    def received(self, data: bytes) -> bool:
        """
        Note bytes that came.

        @return: whether to read them; if not, they are dropped, but for L{not_read}.
        """

    def expected(self, line: bytes) -> None:
        """Note a line, or the beginning of one, that will be read: nobody else may be first."""

    def not_read(self, data: bytes) -> bool:
        """
        Note a line, or the beginning of one, that came and is not read: its signature is good no
        more.

        @return: whether more of them are wanted.
        """

    def read(self, next_line: Callable[[], bytes | None], most: int) -> int:
        """
        Read lines, and answer them together.

        @param next_line: gives the next line; L{None}: there is none for now.
        @param most: most lines to read.
        @return: the number of lines read.
        """

    def drained(self) -> None:
        """Note that the kernel has all that was written."""

    def peer_finished(self) -> None:
        """Note the peer's FIN: it may still read."""

    def connection_lost(
        self, reason: CloseReason, unsent_bytes: int, not_tls: bool = False
    ) -> None:
        """
        End: the connection is gone.

        @param reason: the reason, where we did not end it.
        @param unsent_bytes: bytes written that the kernel never took.
        @param not_tls: whether what came was no TLS where it had to be.
        """


#: Makes the conversation of a connection, given the peer's address.
Converse: TypeAlias = Callable[[Transport, str], LineReceiver]
