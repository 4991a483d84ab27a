"""Clock check: the phones' signatures tell that the server's own clock is wrong."""

from collections.abc import Callable
from typing import Final, NamedTuple

from domaeka.policies.auth import UNKNOWN
from domaeka.wire import Auth

#: Least number of devices whose clocks agree against ours.
LEAST_DEVICES: Final = 3
#: Most by which clocks that agree differ, in seconds.  Phones set theirs from the network.
AGREE_SECONDS: Final = 60.0
#: Time after which a wrong time counts no more, in seconds: four pings of C{ping.interval}.  A
#: right one counts for as long at most, and for half of that at least.
LATELY_SECONDS: Final = 120.0
#: Most devices remembered of each kind, some 200 bytes each.
MAX_DEVICES: Final = 4_096


class _Wrong(NamedTuple):
    noted_at: float  # in steady seconds
    lead: float  # of the phone's clock over the steady one, in seconds
    timestamp: float  # as it was signed


class ClockCheck:
    """
    Compares the server's clock with those of phones whose signatures held.

    The clock is wrong if most of the devices heard lately, and L{LEAST_DEVICES} at least, signed
    times outside the window that agree with each other.  It is right again as soon as it is set
    so, or devices sign times within the window.

    A recorded line has a right signature and a wrong time, too.  So a device counts by what it
    signed of itself, and only with a time later than the one it signed last.

    @ivar window: difference that is accepted, either way, in seconds.
    """

    def __init__(
        self, window: float, seconds: Callable[[], float], wall: Callable[[], float]
    ) -> None:
        """
        @param seconds: the time now, in seconds, which never steps.
        @param wall: the wall clock, in seconds since 1970.
        """
        self.window = window
        self._seconds = seconds
        self._wall = wall
        #: The last times that were right, in milliseconds, by device: of this period, and of the
        #: one before.
        self._right: dict[tuple[str, ...], float] = {}
        self._right_before: dict[tuple[str, ...], float] = {}
        #: The last times that were wrong, the one noted longest ago first.
        self._wrong: dict[tuple[str, ...], _Wrong] = {}

    def right(self, device: tuple[str, str], timestamp: float) -> None:
        """Note a signature whose time was right.  @param timestamp: in milliseconds since 1970."""
        if device in self._right or len(self._right) < MAX_DEVICES:
            self._right[device] = timestamp
        if self._wrong:
            self._wrong.pop(device, None)

    def wrong(self, auth: Auth) -> None:
        """Note a signature that held, and whose time was wrong."""
        device = _signer_of(auth)
        timestamp = float(auth.timestamp)
        before = self._wrong.get(device)
        last = max(
            0.0 if before is None else before.timestamp,
            self._right.get(device, 0.0),
            self._right_before.get(device, 0.0),
        )
        if timestamp <= last:
            return  # it may be recorded
        self._right.pop(device, None)
        self._right_before.pop(device, None)
        self._wrong.pop(device, None)
        if len(self._wrong) >= MAX_DEVICES:
            del self._wrong[next(iter(self._wrong))]
        now = self._seconds()
        self._wrong[device] = _Wrong(now, timestamp / 1000 - now, timestamp)

    def turn(self) -> None:
        """Begin another period, which is to be done each half of L{LATELY_SECONDS}."""
        self._right_before, self._right = self._right, {}
        self._forget_old()

    def offset(self) -> float:
        """Offset of the server's clock, in seconds: above 0 it is ahead; 0.0: it is right."""
        return self._verdict()[0]

    def health(self) -> str | None:
        """Fault of the server's clock, in words; L{None}: there is none."""
        offset, agreeing, heard = self._verdict()
        if not offset:
            return None
        side = "ahead" if offset > 0 else "behind"
        return (
            f"this server's clock is {abs(offset):.0f} s {side}, by the signatures of {agreeing} "
            f"of {heard} phones, whose chat is refused: set it by NTP (timedatectl, chronyc "
            "tracking)"
        )

    def _verdict(self) -> tuple[float, int, int]:
        """@return: L{offset}, the number of devices that agree on it, and of those heard lately."""
        self._forget_old()
        if len(self._wrong) < LEAST_DEVICES:
            return 0.0, 0, 0
        ahead = self._seconds() - self._wall()
        # The clock may have been set since.
        skews = sorted(
            skew for each in self._wrong.values() if abs(skew := each.lead + ahead) > self.window
        )
        agreeing: list[float] = []
        first = 0
        for last, skew in enumerate(skews):
            while skew - skews[first] > AGREE_SECONDS:
                first += 1
            if last + 1 - first > len(agreeing):
                agreeing = skews[first : last + 1]
        heard = len(skews) + len(self._right.keys() | self._right_before.keys())
        if len(agreeing) < LEAST_DEVICES or 2 * len(agreeing) <= heard:
            return 0.0, 0, heard
        return -agreeing[len(agreeing) // 2], len(agreeing), heard

    def _forget_old(self) -> None:
        oldest = self._seconds() - LATELY_SECONDS
        while self._wrong:
            first = next(iter(self._wrong))
            if self._wrong[first].noted_at >= oldest:
                return
            del self._wrong[first]


def _signer_of(auth: Auth) -> tuple[str, ...]:
    """The device by what is signed, which C{deviceID} is not: both ids are the Android id."""
    uuid = auth.device_uuid
    if uuid and uuid != UNKNOWN:
        return auth.bot_name, uuid
    return auth.bot_name, auth.mac_address or "", auth.ip_address or ""
