"""Free space on the disks of the state directory and of SQLite's file."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple

from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from domaeka.errors import StoreError

#: A disk is low below both this part of it and this many bytes free: chat of some hours, and time
#: for an operator.
LOW_SHARE: Final = 0.05
LOW_BYTES: Final = 1_073_741_824
#: Interval at which the disks are looked at for the log, in seconds.
LOOK_SECONDS: Final = 30.0


class Space(NamedTuple):
    """Space of a disk, in bytes: that for us, and that of all of it."""

    free: int
    total: int


def space_of(path: Path) -> Space:
    """@raise OSError: it cannot be looked at."""
    found = os.statvfs(path)
    return Space(found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize)


class DiskSpace:
    """Looks at disks: a check of health, and a line in the log when they run low."""

    _log = Logger()

    def __init__(
        self,
        folders: Iterable[Path],
        reactor: Any,
        look: Callable[[Path], Space] = space_of,
    ) -> None:
        """@param folders: on the disks; each is looked at once."""
        self._folders = tuple(dict.fromkeys(folders))
        self._look = look
        self._was_low = False
        self._loop = LoopingCall(self._look_for_log)
        self._loop.clock = reactor

    def start(self) -> None:
        """Look now, and then again and again."""
        self._loop.start(LOOK_SECONDS).addErrback(
            lambda failure: self._log.failure("disks are no longer looked at", failure)
        )

    def stop(self) -> None:
        """Look no more."""
        if self._loop.running:
            self._loop.stop()

    def free(self) -> float:
        """The least free space of the disks, in bytes; not a number: none can be looked at."""
        found = [space.free for _, space in self._spaces() if space is not None]
        return min(found, default=float("nan"))

    def health(self) -> str | None:
        """A L{HealthCheck<domaeka.interfaces.HealthCheck>}: names the disk that runs low."""
        for folder, space in self._spaces():
            if space is None:
                return f"the disk of {folder} cannot be looked at"
            if space.free < min(LOW_BYTES, LOW_SHARE * space.total):
                return (
                    f"the disk of {folder} is nearly full: {space.free / 1e6:.0f} MB of "
                    f"{space.total / 1e6:.0f} MB are free"
                )
        return None

    def _spaces(self) -> list[tuple[Path, Space | None]]:
        found: list[tuple[Path, Space | None]] = []
        for folder in self._folders:
            try:
                found.append((folder, self._look(folder)))
            except OSError:
                found.append((folder, None))
        return found

    def _look_for_log(self) -> None:
        fault = self.health()
        if fault is not None and not self._was_low:
            self._log.warn("{error}", error=StoreError(fault))  # a text would be cut
        elif fault is None and self._was_low:
            self._log.info("there is room on the disk again")
        self._was_low = fault is not None
