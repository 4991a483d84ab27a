"""Tests for L{domaeka.startup}."""

import resource

from twisted.trial.unittest import SynchronousTestCase

from domaeka.config import Settings, load_settings
from domaeka.errors import ConfigError
from domaeka.startup import allow_open_files


class OpenFilesTests(SynchronousTestCase):
    """Tests for L{allow_open_files}."""

    def setUp(self) -> None:
        self.limits = (1024, 4096)
        self.patch(resource, "getrlimit", lambda which: self.limits)
        self.patch(resource, "setrlimit", self.set_limits)

    def set_limits(self, which: int, limits: tuple[int, int]) -> None:
        """As the kernel does."""
        if limits[0] > self.limits[1]:
            raise ValueError("current limit exceeds maximum limit")
        self.limits = limits

    def settings(self, connections: int) -> Settings:
        return load_settings(None, [("server.max_connections", str(connections))], {})

    def test_enough(self) -> None:
        """Where there are enough already nothing is changed."""
        for limits in ((1024, 4096), (resource.RLIM_INFINITY, resource.RLIM_INFINITY)):
            self.limits = limits
            allow_open_files(self.settings(400))
            self.assertEqual(self.limits, limits)

    def test_raised(self) -> None:
        """The limit is raised to what is needed: half as many more may be closing."""
        allow_open_files(self.settings(2000))
        self.assertEqual(self.limits, (3300, 4096))

    def test_too_few(self) -> None:
        """What the machine does not allow is said in one line."""
        error = self.assertRaises(ConfigError, allow_open_files, self.settings(3000))
        for word in ("server.max_connections", "4800", "4096", "LimitNOFILE"):
            self.assertIn(word, str(error))
        self.assertEqual(len(str(error).splitlines()), 1)
