"""Addresses at which devices were last seen."""

from collections.abc import Callable
from typing import Final, NamedTuple

from domaeka.policies.networks import address_key

#: Time after which a device is expected no more where it was last seen, in seconds: 30 days.
#: Source: docs/security.md, "What is promised".
EXPECTED_SECONDS: Final = 30 * 86_400.0


class _Sighting(NamedTuple):
    key: int  # of the address
    at: float  # seconds since 1970


class LastSeen:
    """
    Counts the devices that may come back to an address.

    Feed it only devices that have authenticated.  It holds one entry for each, and none of those
    at what is no IP address.
    """

    def __init__(self, wall: Callable[[], float]) -> None:
        """@param wall: the wall clock, in seconds since 1970."""
        self._wall = wall
        self._sightings: dict[tuple[str, str], _Sighting] = {}
        #: By the key of the address, the device that was seen longest ago first.
        self._devices: dict[int, dict[tuple[str, str], None]] = {}

    def seen(self, device: tuple[str, str], address: str, at: float) -> None:
        """
        Enter a device, in the place of what was known of it.

        @param at: the time, in seconds since 1970.
        """
        self.forget(device)
        key = address_key(address)
        if key is not None:
            self._sightings[device] = _Sighting(key, at)
            self._devices.setdefault(key, {})[device] = None

    def forget(self, device: tuple[str, str]) -> None:
        """Expect a device nowhere."""
        sighting = self._sightings.pop(device, None)
        if sighting is not None:
            devices = self._devices[sighting.key]
            del devices[device]
            if not devices:
                del self._devices[sighting.key]

    def count(self, key: int) -> int:
        """
        Number of devices last seen at an address within L{EXPECTED_SECONDS}.

        @param key: the L{address_key}: of IPv6 that of a /64.
        """
        oldest = self._wall() - EXPECTED_SECONDS
        while key in self._devices:
            devices = self._devices[key]
            first = next(iter(devices))
            if self._sightings[first].at >= oldest:
                return len(devices)
            self.forget(first)
        return 0

    def __len__(self) -> int:
        """Number of devices with an entry."""
        return len(self._sightings)
