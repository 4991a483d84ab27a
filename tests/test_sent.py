"""Tests for L{domaeka.gateway.sent}."""

from twisted.trial.unittest import SynchronousTestCase

from domaeka.gateway.sent import SentMessages
from domaeka.interfaces import DeviceKey
from domaeka.policies.outbox import Fate

KEY = DeviceKey("봇", "d")


class SentMessagesTests(SynchronousTestCase):
    """Tests for L{SentMessages}."""

    def setUp(self) -> None:
        self.sent = SentMessages("e", max_sent=3)

    def test_fate(self) -> None:
        """What becomes of a message shows under its id."""
        message = self.sent.enter(KEY, "방", None, 1, 0.0)
        self.assertIs(message.state, Fate.QUEUED)
        message.listener(0)(Fate.SENT)
        found = self.sent.find(message.id)
        assert found is not None
        self.assertIs(found.state, Fate.SENT)

    def test_several_frames(self) -> None:
        """A message of several frames has come to what the worst of them has."""
        message = self.sent.enter(KEY, "방", None, 3, 0.0)
        for frame, fate, state in (
            (0, Fate.SENT, Fate.QUEUED),
            (1, Fate.SENT, Fate.QUEUED),
            (2, Fate.SENT, Fate.SENT),
            (0, Fate.ACKNOWLEDGED, Fate.SENT),
            (1, Fate.EXPIRED, Fate.EXPIRED),
            (2, Fate.DROPPED, Fate.DROPPED),
        ):
            message.listener(frame)(fate)
            self.assertIs(message.state, state)

    def test_bounded(self) -> None:
        """The oldest is forgotten; what becomes of it then is told to nobody."""
        messages = [self.sent.enter(KEY, "방", None, 1, 0.0) for _ in range(4)]
        self.assertEqual(len({message.id for message in messages}), 4)
        self.assertIsNone(self.sent.find(messages[0].id))
        self.assertIsNotNone(self.sent.find(messages[3].id))
        messages[0].listener(0)(Fate.SENT)
