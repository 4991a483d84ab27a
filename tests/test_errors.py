"""Tests for L{domaeka.errors}."""

from twisted.trial.unittest import SynchronousTestCase

from domaeka.errors import CloseReason, ConfigError, DomaekaError, ErrorCode, StoreError, WireError


class WireErrorTests(SynchronousTestCase):
    """Tests for L{WireError}."""

    def test_fatal(self) -> None:
        """These codes end a connection; what is merely bad is answered, and it lives."""
        fatal = {code for code in ErrorCode if WireError(code, "").fatal}
        self.assertEqual(
            fatal, {"FRAME_TOO_LARGE", "BAD_HANDSHAKE", "BANNED", "SERVER_FULL", "TAKEN_OVER"}
        )

    def test_text(self) -> None:
        """The text is for people, in a log too."""
        error = WireError(ErrorCode.BAD_FRAME, "not UTF-8")
        self.assertEqual((error.text, str(error), error.code), ("not UTF-8",) * 2 + ("BAD_FRAME",))


class TreeTests(SynchronousTestCase):
    """All errors of this project."""

    def test_one_root(self) -> None:
        """Whoever catches the root catches all."""
        for kind in (ConfigError, StoreError, WireError):
            self.assertTrue(issubclass(kind, DomaekaError))

    def test_words(self) -> None:
        """What leaves the process is one plain word, or a few, each of its own."""
        for words in (ErrorCode, CloseReason):
            self.assertEqual(len({str(word) for word in words}), len(words))
            for word in words:
                self.assertRegex(str(word), r"\A([A-Z]+(_[A-Z]+)*|[a-z]+( [a-z]+)*)\Z")
