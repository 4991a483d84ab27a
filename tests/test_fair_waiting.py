"""What waits for the store, or for an operator's question, is shared by rooms and phones."""

from functools import partial

from domaeka.gateway import held
from domaeka.gateway.directory.delivery import Deliveries
from domaeka.interfaces import DeviceKey
from domaeka.policies import records
from domaeka.pools import Pool
from tests.fairness import FairCase
from tests.gateway_case import KEY, GatewayCase
from tests.test_journal import JournalCase

OTHER = DeviceKey("봇", "e" * 16)


class HeldChatTests(GatewayCase, FairCase):
    """Chat before the store has been read."""

    pools = (Pool.HELD_CHAT,)

    def test_rooms_and_phones(self) -> None:
        """However much one room says, another of its phone, and another phone, are held, too."""
        self.patch(held, "MAX_HELD", 100)
        self.context.held.begin()
        self.devices.store_is_known = False
        phone, other = self.ready(), self.ready(OTHER)
        phone.chat(*(str(number) for number in range(200)), room="greedy", channel_id="1")
        phone.chat("가", room="innocent", channel_id="2")
        other.chat("나", room="innocent", channel_id="2")
        self.devices.store_is_known = True
        self.directory.decisions.store_read()
        self.run_for(1.0)
        texts = [chat.text for chat, _ in self.bots.submitted]
        self.assertEqual(texts[-2:], ["가", "나"])
        self.assert_gave_way(self.metrics, Pool.HELD_CHAT, 100)


class UnstoredTests(JournalCase, FairCase):
    """Messages that are taken, while the store takes nothing."""

    pools = (Pool.UNSTORED,)

    def test_rooms(self) -> None:
        """A room takes half of what is left; a message of another one is taken."""
        self.patch(records, "MAX_UNSTORED", 20)
        client = self.begin()
        self.break_store()
        ids = [f"greedy {number}" for number in range(30)]
        for client_id in ids:
            client.chat("nothing", room="greedy", channel_id="1", client_id=client_id)
        client.chat("nothing", room="innocent", channel_id="2", client_id="innocent")
        known = self.device().client_ids
        # One stands in the batch that fails, and ten wait for the next one.
        self.assertEqual(sum(client_id in known for client_id in ids), 11)
        self.assertIn("innocent", known)
        self.assert_gave_way(self.metrics, Pool.UNSTORED, 19)
        self.break_store(False)
        self.run_for(2.0)


class DeliveriesTests(GatewayCase, FairCase):
    """Delivery status of operators' messages."""

    pools = (Pool.DELIVERIES,)

    def test_phones(self) -> None:
        """Messages to one phone without end leave known what became of those to another."""
        gave_way = partial(self.metrics.pools.gave_way, Pool.DELIVERIES)
        sent = Deliveries("e", max_sent=10, gave_way=gave_way)
        innocent = sent.enter(OTHER, "방", None, 1, 0.0)
        last = [sent.enter(KEY, "방", None, 1, 0.0) for _ in range(50)][-1]
        self.assertEqual([sent.find(m.id) for m in (innocent, last)], [innocent, last])
        self.assert_gave_way(self.metrics, Pool.DELIVERIES, 41)
