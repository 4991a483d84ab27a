"""Tests for L{domaeka.tap}."""

from twisted.trial.unittest import SynchronousTestCase

from domaeka.tap import Options


class OptionsTests(SynchronousTestCase):
    """What is said on the command line."""

    def test_set_without_a_value(self) -> None:
        """A C{--set} without a value is answered in one line."""
        parse = Options().parseOptions
        said = self.assertRaises(SystemExit, parse, ["--set", "server.port"])
        self.assertEqual(str(said), "domaeka: --set server.port: must be SECTION.KEY=VALUE")
