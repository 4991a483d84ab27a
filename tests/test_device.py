"""Tests for L{domaeka.gateway.device}: what outlives a connection."""

from domaeka.messages import Dialect, Reply
from domaeka.testing import FakeDispatcher
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


class FateTests(GatewayCase):
    """What becomes of answers that nobody fetches."""

    def test_own_time(self) -> None:
        """An answer may have a time of its own, and whoever sent it hears that it has run out."""
        fates: list[str] = []
        self.ready().drop()
        self.device().send(Reply("방", "1", "봇", "말"), 5.0, fates.append)
        self.run_for(4.0)
        self.assertEqual(fates, [])
        self.run_for(2.0)
        self.assertEqual(fates, ["expired"])


class StopTests(GatewayCase):
    """What is kept over a stop."""

    def test_client(self) -> None:
        """What a client has not acknowledged goes again, and what it said is known again."""
        peer = self.client("ack")
        peer.chat("하나", "둘", client_id="a")
        peer.chat("셋", client_id="b")
        peer.ack(1)
        kept = list(self.registry.mail())
        self.serve()
        self.registry.load_mail(kept)
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
        kept = list(self.registry.mail())
        self.serve()
        self.registry.load_mail(kept)
        back = self.greeted()
        back.pong()
        self.assertEqual(back.texts, ["하나"])
        self.assertEqual(list(self.registry.mail()), [])

    def test_late(self) -> None:
        """What the store gives up late goes behind what is new; what was said is known again."""
        peer = self.client("ack")
        peer.chat("하나", client_id="a")
        kept = list(self.registry.mail())
        self.serve()
        back = self.client("ack")
        back.chat("둘", client_id="b")
        self.registry.load_mail(kept)
        self.run_for(0.0)
        back.chat("하나", client_id="a")
        self.assertEqual((back.texts, back.numbers), (["둘", "하나"], [1, 2]))
        self.assertEqual((back.taken, len(self.bots.submitted)), (["b", "a"], 1))

    def test_late_for_one_that_is_away(self) -> None:
        """Before the device is back it is not late: what was kept goes first, under its numbers."""
        peer = self.client("ack")
        peer.chat("하나")
        kept = list(self.registry.mail())
        self.serve()
        self.registry.reach(KEY).send(Reply("방", "1", "봇", "둘"))
        self.registry.load_mail(kept)
        back = self.client("ack")
        self.assertEqual((back.texts, back.numbers), (["하나", "둘"], [1, 2]))
        self.assertEqual(back.greetings[0].epoch, peer.greetings[0].epoch)

    def test_what_cannot_be_read(self) -> None:
        """What the store holds and nobody can read costs that device's mail only."""
        self.registry.load_mail([(KEY, b"\xc1junk"), (KEY, b"")])
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
