"""Tests for L{domaeka.server.disk}."""

from math import isnan
from pathlib import Path

from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from domaeka.server.disk import LOOK_SECONDS, LOW_BYTES, DiskSpace, Space, space_of


class DiskSpaceTests(SynchronousTestCase):
    """Tests for L{DiskSpace}."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.spaces = {Path("/state"): Space(2**39, 2**40), Path("/data"): Space(2**38, 2**40)}
        self.disk = DiskSpace([Path("/state"), Path("/data")], self.clock, self.look)

    def look(self, path: Path) -> Space:
        """The space of a disk; one that is not known cannot be looked at."""
        if path not in self.spaces:
            raise OSError("gone")
        return self.spaces[path]

    def test_room(self) -> None:
        """All is well while there is room; the least of the disks is told."""
        self.assertIsNone(self.disk.health())
        self.assertEqual(self.disk.free(), 2**38)

    def test_nearly_full(self) -> None:
        """The disk that runs low is named; a small one may be fuller."""
        self.spaces[Path("/data")] = Space(LOW_BYTES - 1, 2**40)
        self.assertIn("/data is nearly full: 1074 MB of 1099512 MB", self.disk.health() or "")
        self.spaces[Path("/data")] = Space(LOW_BYTES - 1, 2**33)
        self.assertIsNone(self.disk.health())

    def test_gone(self) -> None:
        """A disk that cannot be looked at is named, too."""
        self.spaces.clear()
        self.assertIn("/state cannot be looked at", self.disk.health() or "")
        self.assertTrue(isnan(self.disk.free()))

    def test_logged(self) -> None:
        """The log says once when it begins, and once when it is over."""
        with capturedLogs() as logs:
            self.disk.start()
            self.spaces[Path("/data")] = Space(1, 2**40)
            self.clock.pump([LOOK_SECONDS] * 3)
            self.spaces[Path("/data")] = Space(2**38, 2**40)
            self.clock.pump([LOOK_SECONDS] * 3)
            self.disk.stop()
        said = [formatEvent(event) for event in logs]
        self.assertEqual(len(said), 2, said)
        self.assertIn("nearly full", said[0])
        self.assertEqual(said[1], "there is room on the disk again")
        self.assertFalse(self.clock.getDelayedCalls())

    def test_this_machine(self) -> None:
        """A real disk has room, and is larger than that."""
        space = space_of(Path(self.mktemp()).parent)
        self.assertGreater(space.total, space.free)
