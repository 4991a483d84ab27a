"""Tests for L{domaeka.gateway.device}: what outlives a connection."""

from domaeka.testing import FakeDispatcher
from domaeka.wire import NO_NOTIFICATION, DeliveryReport, Dialect, Reply, encode_frame
from tests.gateway_case import KEY, GatewayCase


class HeldAnswersTests(GatewayCase):
    """Answers that come when their connection has gone."""

    def test_next_connection(self) -> None:
        """They go to the next connection of the device, once it has authenticated."""
        self.bots.hold = True
        peer = self.ready()
        peer.chat("하나", "둘")
        peer.drop()
        self.bots.release()
        back = self.greeted()
        self.assertEqual(back.texts, [])
        back.pong()
        self.assertEqual(back.texts, ["하나", "둘"])

    def test_time_to_live(self) -> None:
        """They wait no longer than their time."""
        bots = FakeDispatcher(lambda chat: chat.text)
        self.serve(("queue.message_ttl", "5"), dispatcher=bots)
        bots.hold = True
        peer = self.ready()
        peer.chat("하나")
        peer.drop()
        bots.release()
        self.run_for(6.0)
        self.assertEqual(self.ready().texts, [])
        self.assertEqual(self.metrics.expired_messages.value, 1)


class StatusTests(GatewayCase):
    """What becomes of answers that nobody fetches."""

    def test_own_time(self) -> None:
        """An answer may have a time of its own, and whoever sent it hears that it has run out."""
        statuses: list[str] = []
        self.ready().drop()
        self.device().send(
            Reply("방", "1", "봇", "말"), 5.0, lambda status, _: statuses.append(status)
        )
        self.run_for(4.0)
        self.assertEqual(statuses, [])
        self.run_for(2.0)
        self.assertEqual(statuses, ["expired"])


class ReportTests(GatewayCase):
    """Delivery reports of clients."""

    def test_agreed_on(self) -> None:
        """A report counts only where it, and C{ack}, were agreed on."""
        for capabilities in ((), ("ack",), ("delivery",)):
            peer = self.client(*capabilities)
            peer.chat("하나")
            peer.write(encode_frame("delivery", DeliveryReport(1, True)))
            self.assertEqual(peer.errors, ["BAD_FRAME"])
            peer.drop()
        self.assertEqual(self.metrics.delivery_reports.labels("delivered").value, 0)

    def test_rooms(self) -> None:
        """What was delivered, or could not be, shows in which rooms the app can answer."""
        peer = self.client("ack", "delivery")
        peer.chat("하나", "둘", "셋")
        room = next(iter(self.rooms.heard))
        for number, ok, reason, answerable in (
            (1, False, "the app refused", None),  # of this message alone
            (2, False, NO_NOTIFICATION, False),
            (3, True, "", True),
        ):
            peer.write(encode_frame("delivery", DeliveryReport(number, ok, reason)))
            self.assertIs(self.rooms.answerable.get(room), answerable)


class StopTests(GatewayCase):
    """What is kept over a stop."""

    def test_client(self) -> None:
        """What a client has not acknowledged goes again, and what it said is known again."""
        peer = self.client("ack")
        peer.chat("하나", "둘", client_id="a")
        peer.chat("셋", client_id="b")
        peer.ack(1)
        kept = list(self.directory.snapshot())
        self.serve()
        self.directory.restore(kept)
        back = self.client("ack")
        self.assertEqual((back.texts, back.numbers), (["셋"], [2]))
        self.assertEqual(back.greetings[0].epoch, peer.greetings[0].epoch)
        back.chat("넷", client_id="b")
        self.assertEqual((back.taken, self.bots.submitted), (["b"], []))

    def test_phone(self) -> None:
        """What had not left for a phone is kept; of one to which nothing is owed, nothing."""
        self.bots.hold = True
        peer = self.ready()
        peer.chat("하나")
        peer.drop()
        self.bots.release()
        kept = list(self.directory.snapshot())
        self.serve()
        self.directory.restore(kept)
        back = self.greeted()
        back.pong()
        self.assertEqual(back.texts, ["하나"])
        self.assertEqual(list(self.directory.snapshot()), [])

    def test_late(self) -> None:
        """What the store gives up late goes behind what is new; what was said is known again."""
        peer = self.client("ack")
        peer.chat("하나", client_id="a")
        kept = list(self.directory.snapshot())
        self.serve()
        back = self.client("ack")
        back.chat("둘", client_id="b")
        self.directory.restore(kept)
        self.run_for(0.0)
        back.chat("하나", client_id="a")
        self.assertEqual((back.texts, back.numbers), (["둘", "하나"], [1, 2]))
        self.assertEqual((back.taken, len(self.bots.submitted)), (["b", "a"], 1))

    def test_late_for_one_that_is_away(self) -> None:
        """Before the device is back it is not late: what was kept goes first, under its numbers."""
        peer = self.client("ack")
        peer.chat("하나")
        kept = list(self.directory.snapshot())
        self.serve()
        self.registry.get_or_create(KEY).send(Reply("방", "1", "봇", "둘"))
        self.directory.restore(kept)
        back = self.client("ack")
        self.assertEqual((back.texts, back.numbers), (["하나", "둘"], [1, 2]))
        self.assertEqual(back.greetings[0].epoch, peer.greetings[0].epoch)

    def test_what_cannot_be_read(self) -> None:
        """What the store holds and nobody can read costs that device's mail only."""
        self.directory.restore([(KEY, b"\xc1junk"), (KEY, b"")])
        self.assertEqual(self.registry.devices(), [])


class DescriptionTests(GatewayCase):
    """What an operator may be told of a phone."""

    def test_connected(self) -> None:
        """What is known of it, without anything that was said."""
        self.ready(dialect=Dialect.V32).chat("비밀")
        described = self.device().describe()
        self.assertEqual(described["스크립트"], "MessengerBotR 3.2.1")
        self.assertEqual((described["받은 메시지"], described["보낸 메시지"]), ("1", "1"))
        self.assertNotIn("비밀", str(described))

    def test_gone(self) -> None:
        """Nothing, where it is not connected."""
        self.client("ack").drop()
        self.run_for(0.1)
        self.assertEqual(self.device().describe(), {})
