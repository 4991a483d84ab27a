"""
The table of signatures that came, so that each is good once: docs/protocol.md, "auth".

A signature is remembered as soon as it has come, whether its line was served, refused, cut, or
thrown away while its connection closed.
"""

from array import array
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Final

from domaeka.policies.networks import address_key
from domaeka.wire import Auth

#: Signatures, and line digests, remembered for one device; likewise those ahead of its time, and
#: those of lines that were not served.  Source: docs/protocol.md, "auth".
MAX_REMEMBERED: Final = 4096
#: Devices whose signatures are remembered at once.  Source: far more than one server has
#: connections for.
MAX_DEVICES: Final = 65_536
#: Devices put out of the table of which is still known up to when their signatures are stale.
MAX_PUT_OUT: Final = 65_536
#: Most devices that are put out at once, for finding the largest claimant takes 1 ms.
_PUT_OUT_AT_ONCE: Final = 64
#: Signatures dropped at once where a device has too many.
_FORGOTTEN_AT_ONCE: Final = 64
#: Signatures and devices in a step of the sweep, beside the rest of the last device's: 2 to 5 ms.
_SWEPT_AT_ONCE: Final = 2_048
#: A signature's connection, below the digest of its first line.
_OWNER_BITS: Final = 64
_OWNER_MASK: Final = (1 << _OWNER_BITS) - 1
#: In the place of a connection: no line under this signature has been served.
_UNSERVED: Final = _OWNER_MASK


class Seen(Enum):
    """Verdict on a signed line: new or not."""

    FRESH = "fresh"
    DOUBTFUL = "doubtful"  # to be served only once the connection has proven itself
    REPEAT = "repeat"  # the same line again: to be dropped silently
    REPLAY = "replay"
    STALE = "stale"


# To look a member up in its Enum takes 0.2 µs.
_FRESH: Final = Seen.FRESH


class _Ahead:
    """
    Signatures with times that are not valid yet.

    @ivar signed: as of L{_Device}.
    @ivar first: in milliseconds; signatures from this time on, up to C{last}, had to be forgotten
        and count as stale.
    """

    __slots__ = ("first", "last", "signed")

    def __init__(self) -> None:
        self.signed = array("q")
        self.first = self.last = -1

    def covers(self, timestamp: int) -> bool:
        return self.first <= timestamp <= self.last


class _Device:
    """
    Recent signatures of one device.

    @ivar address: from where it was entered.
    @ivar signed: for each signature its key in L{SignatureTable._known}, and its time in
        milliseconds, in the order in which they came.
    @ivar further: digests of further lines under a known signature, each with the signature's
        time in milliseconds.
    @ivar forgotten_until: in milliseconds; signatures up to this time count as stale.
    @ivar ahead: signatures ahead of the time; L{None}: there are none, as usual.
    """

    __slots__ = ("address", "ahead", "forgotten_until", "further", "signed")

    def __init__(self, address: str, forgotten_until: int) -> None:
        self.address = address
        self.signed = array("q")
        self.further: dict[int, int] | None = None
        self.forgotten_until = forgotten_until
        self.ahead: _Ahead | None = None


class SignatureTable:
    """
    Signatures that came, and their lines.

    A signature belongs to the connection on which it was first served.  One table serves all
    devices, so that a line with another, unsigned, C{deviceID} is recognised.

    Where there are too many devices, those of the address (of IPv6: the /64) that has entered the
    most are put out, the oldest first.  That costs them nothing but their repeats: what they have
    signed up to then is stale.
    """

    def __init__(
        self,
        window: float,
        seconds: Callable[[], float],
        wall: Callable[[], float],
        gave_way: Callable[[object, int], object] = lambda claimant, count: None,
    ) -> None:
        """
        @param window: how long a signature is valid after its timestamp, in seconds.
        @param seconds: the time now, in seconds, which never steps.
        @param wall: the wall clock, in seconds since 1970.
        @param gave_way: called with an address, and how many of its devices were put out.
        """
        #: As given; may be changed at any time.
        self.window = window
        self._wall = wall
        self._seconds = seconds
        self._swept = seconds(), wall()
        self._gave_way = gave_way
        # A signature's hash to the digest of its first line and its connection, in one number:
        # 3 KB less for the twenty pongs of an idle phone.
        self._known: dict[int, int] = {}
        #: Of signatures under which nothing has been served: the connection on which each came,
        #: and how many bytes of its line.
        self._unserved: dict[int, tuple[int, int]] = {}
        self._devices: dict[tuple[str, str], _Device] = {}
        #: The devices of each address, the oldest first.
        self._claimants: dict[int | None, dict[tuple[str, str], None]] = {}
        #: By the hash of a device that was put out: its C{forgotten_until}.
        self._put_out: dict[int, int] = {}

    def judge(
        self,
        auth: Auth,
        connection: int,
        line: bytes,
        key: tuple[str, str] | None = None,
        address: str = "",
        *,
        trusted: bool = True,
        doubtful: bool = False,
    ) -> Seen:
        """
        Remember a line whose signature held.

        @param connection: a number that no other connection has, above 0.
        @param key: bot and device id of C{auth}, where the caller has them already.
        @param address: of the peer: there the device is entered, if it is new.
        @param trusted: whether the connection has proven itself.
        @param doubtful: whether the line is not to be served before it has.
        """
        if key is None:
            key = (auth.bot_name, auth.device_id)
        device = self._devices.get(key)
        # Python's keyed SipHash: 64 bits suffice, for only phones can make signatures, and a
        # device has 4,096 lines at most.
        signature = hash(auth.signature)
        digest = hash(line)
        known = self._known.get(signature)
        timestamp = int(auth.timestamp)
        if known is not None:
            owner = known & _OWNER_MASK
            if owner == _UNSERVED:
                came_on, length = self._unserved[signature]
                same = hash(line[:length]) == known >> _OWNER_BITS
                if not same and came_on != connection:
                    return Seen.REPLAY
                if doubtful or not trusted:
                    return Seen.DOUBTFUL
                del self._unserved[signature]
                self._known[signature] = digest << _OWNER_BITS | connection
                return _FRESH
            further = device.further if device is not None else None
            if digest == known >> _OWNER_BITS or (further is not None and digest in further):
                return Seen.REPEAT
            if owner != connection or device is None:
                return Seen.REPLAY
            if further is None:
                further = device.further = {}
            further[digest] = timestamp  # another message of the same millisecond
            if len(further) > MAX_REMEMBERED:
                del further[next(iter(further))]
            return _FRESH
        if device is None:
            device = self._enter(key, address)
        if timestamp <= device.forgotten_until or (
            device.ahead is not None and device.ahead.covers(timestamp)
        ):
            return Seen.STALE
        if doubtful:
            self._note_unserved(signature, connection, digest, len(line))
        else:
            self._known[signature] = digest << _OWNER_BITS | connection
        signed = device.signed
        signed.append(signature)
        signed.append(timestamp)
        if len(signed) > 2 * MAX_REMEMBERED:
            self._forget_oldest(device)
        return Seen.DOUBTFUL if doubtful else _FRESH

    def wants(self, timestamp: float) -> bool:
        """True if a signature of C{timestamp}, in milliseconds, may be valid, now or later."""
        return timestamp / 1000 >= self._cautious_now() - self.window

    def _cautious_now(self) -> float:
        """
        The time by which signatures are forgotten.  It goes twice as fast as time at most: what a
        clock that was set forward makes old is valid again once it is set back.
        """
        before, swept = self._swept
        return min(self._wall(), swept + 2 * (self._seconds() - before))

    def knows(self, signature: str) -> bool:
        """True if a signature has come."""
        return hash(signature) in self._known

    def owner(self, auth: Auth) -> int:
        """The number of the connection on which a signature first came; 0: it did not."""
        signature = hash(auth.signature)
        owner = self._known.get(signature, 0) & _OWNER_MASK
        return self._unserved[signature][0] if owner == _UNSERVED else owner

    def spoil(
        self, auth: Auth, connection: int, line: bytes, *, ahead: bool = False, address: str = ""
    ) -> None:
        """
        Remember a right signature whose line is not served: refused, cut, or never read.

        That same line, or what goes on as it began, may still be served where it comes on a
        connection that has proven itself: a phone repeats what it could not write.

        @param line: what came of it.
        @param ahead: whether the signature is not valid yet.
        """
        signature = hash(auth.signature)
        if signature in self._known:
            return
        timestamp = int(auth.timestamp)
        key = (auth.bot_name, auth.device_id)
        device = self._devices.get(key)
        if device is None:
            device = self._enter(key, address)
        if timestamp <= device.forgotten_until:
            return
        if ahead and device.ahead is None:
            device.ahead = _Ahead()
        if device.ahead is not None and device.ahead.covers(timestamp):
            return
        self._note_unserved(signature, connection, hash(line), len(line))
        signed = device.ahead.signed if ahead and device.ahead is not None else device.signed
        signed.append(signature)
        signed.append(timestamp)
        if len(signed) > 2 * MAX_REMEMBERED:
            self._forget_oldest(device, ahead)

    def _note_unserved(self, signature: int, connection: int, digest: int, length: int) -> None:
        self._known[signature] = digest << _OWNER_BITS | _UNSERVED
        self._unserved[signature] = (connection, length)

    def _forget_oldest(self, device: _Device, ahead: bool = False) -> None:
        """Forget the oldest signatures of a device: several, for moving the rest takes 2 µs."""
        early = device.ahead if ahead else None
        signed = device.signed if early is None else early.signed
        times = signed[1 : 2 * _FORGOTTEN_AT_ONCE : 2]
        self._forget(signed, 2 * _FORGOTTEN_AT_ONCE)
        if early is None:
            device.forgotten_until = max(device.forgotten_until, *times)
        else:
            early.first = min(times) if early.first < 0 else min(early.first, *times)
            early.last = max(early.last, *times)

    def _forget(self, signed: "array[int]", count: int) -> None:
        """Forget the first signatures of C{signed}: so many of its numbers, two for each."""
        for signature in signed[:count:2]:
            del self._known[signature]
            if self._unserved:
                self._unserved.pop(signature, None)
        del signed[:count]

    # Devices

    def _enter(self, key: tuple[str, str], address: str) -> _Device:
        """Enter a device; where there are too many, others are put out."""
        if len(self._devices) >= MAX_DEVICES:
            self._make_room()
        until = self._put_out.pop(hash(key), -1) if self._put_out else -1
        device = self._devices[key] = _Device(address, until)
        self._claimants.setdefault(address_key(address), {})[key] = None
        return device

    def _make_room(self) -> None:
        """Put out devices of the address that has the most."""
        devices = max(self._claimants.values(), key=len)
        count = min(_PUT_OUT_AT_ONCE, max(1, len(devices) // 2))
        in_time = [key for key in devices if self._devices[key].ahead is None]
        address, chosen = "", (in_time or list(devices))[:count]
        for key in chosen:
            device = self._remove(key)
            address, signed = device.address, device.signed
            until = max((device.forgotten_until, *signed[1::2]))
            if device.ahead is not None:  # there are only such
                until = max((until, device.ahead.last, *device.ahead.signed[1::2]))
                self._forget(device.ahead.signed, len(device.ahead.signed))
            self._forget(signed, len(signed))
            self._put_out[hash(key)] = until
        while len(self._put_out) > MAX_PUT_OUT:
            del self._put_out[next(iter(self._put_out))]
        self._gave_way(address, len(chosen))

    def _remove(self, key: tuple[str, str]) -> _Device:
        device = self._devices.pop(key)
        claimant = address_key(device.address)
        devices = self._claimants[claimant]
        del devices[key]
        if not devices:
            del self._claimants[claimant]
        return device

    # Time

    def sweep(self) -> Iterator[None]:
        """
        Forget signatures that are no longer valid, some at each step.  To be begun every minute,
        and run to its end.
        """
        now = self._cautious_now()
        self._swept = self._seconds(), now
        oldest = (now - self.window) * 1000
        looked_at = 0
        for key, device in list(self._devices.items()):
            if self._devices.get(key) is not device:
                continue  # put out meanwhile
            swept = self._sweep_old(device.signed, oldest)
            ahead = device.ahead
            if ahead is not None:
                swept += self._sweep_old(ahead.signed, oldest)
                if not ahead.signed and ahead.last < oldest:
                    device.ahead = None
            further = device.further
            while further and further[first := next(iter(further))] < oldest:
                del further[first]
            if not further:
                device.further = None
            if not device.signed and device.ahead is None and device.forgotten_until < oldest:
                self._remove(key)
            looked_at += 1 + swept
            if looked_at >= _SWEPT_AT_ONCE:
                looked_at = 0
                yield
        for key_hash, until in list(self._put_out.items()):
            if until < oldest:
                self._put_out.pop(key_hash, None)

    def _sweep_old(self, signed: "array[int]", oldest: float) -> int:
        """@return: how many signatures were forgotten."""
        old = 0
        while old < len(signed) and signed[old + 1] < oldest:
            old += 2
        if old:
            self._forget(signed, old)
        return old // 2

    def __len__(self) -> int:
        """Number of signatures that are remembered."""
        return len(self._known)
