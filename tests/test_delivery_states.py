"""Tests for L{domaeka.gateway.directory.delivery}."""

from twisted.trial.unittest import SynchronousTestCase

from domaeka.gateway.directory.delivery import Deliveries
from domaeka.interfaces import DeviceKey
from domaeka.policies.outbox import DeliveryStatus

KEY = DeviceKey("봇", "d")


class SentMessagesTests(SynchronousTestCase):
    """Tests for L{Deliveries}."""

    def setUp(self) -> None:
        self.sent = Deliveries("e", max_sent=3)

    def test_fate(self) -> None:
        """What becomes of a message shows under its id."""
        message = self.sent.enter(KEY, "방", None, 1, 0.0)
        self.assertIs(message.state, DeliveryStatus.QUEUED)
        message.listener(0)(DeliveryStatus.SENT, "")
        found = self.sent.find(message.id)
        assert found is not None
        self.assertIs(found.state, DeliveryStatus.SENT)

    def test_several_frames(self) -> None:
        """A message of several frames has come to what the worst of them has."""
        message = self.sent.enter(KEY, "방", None, 3, 0.0)
        for frame, status, state in (
            (0, DeliveryStatus.SENT, DeliveryStatus.QUEUED),
            (1, DeliveryStatus.SENT, DeliveryStatus.QUEUED),
            (2, DeliveryStatus.SENT, DeliveryStatus.SENT),
            (0, DeliveryStatus.ACKNOWLEDGED, DeliveryStatus.SENT),
            (1, DeliveryStatus.DELIVERED, DeliveryStatus.SENT),
            (2, DeliveryStatus.DELIVERED, DeliveryStatus.ACKNOWLEDGED),
            (2, DeliveryStatus.REFUSED_BY_APP, DeliveryStatus.REFUSED_BY_APP),
            (1, DeliveryStatus.EXPIRED, DeliveryStatus.EXPIRED),
            (2, DeliveryStatus.DROPPED, DeliveryStatus.DROPPED),
        ):
            message.listener(frame)(status, "")
            self.assertIs(message.state, state)

    def test_reason(self) -> None:
        """The reason of the first frame that the app refused is kept."""
        message = self.sent.enter(KEY, "방", None, 3, 0.0)
        for frame, reason in enumerate(("", "first", "second")):
            message.listener(frame)(DeliveryStatus.REFUSED_BY_APP, reason)
        self.assertEqual(message.reason, "first")

    def test_bounded(self) -> None:
        """The oldest is forgotten; what becomes of it then is told to nobody."""
        messages = [self.sent.enter(KEY, "방", None, 1, 0.0) for _ in range(4)]
        self.assertEqual(len({message.id for message in messages}), 4)
        self.assertIsNone(self.sent.find(messages[0].id))
        self.assertIsNotNone(self.sent.find(messages[3].id))
        messages[0].listener(0)(DeliveryStatus.SENT, "")
