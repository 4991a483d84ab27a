"""Reading is shared: a phone that says too much is read from more slowly, and is named."""

from typing import Any

from twisted.logger import capturedLogs, formatEvent

from domaeka.config import BYTES_PER_SECOND, load_settings
from domaeka.gateway.flow.throttle import LONG_SECONDS
from domaeka.interfaces import DeviceKey
from domaeka.policies.allowance import BURST_SECONDS
from domaeka.pools import Pool
from domaeka.testing import FakeDispatcher
from domaeka.wire import pack_text
from tests.fairness import FairCase
from tests.gateway_case import KEY, GatewayCase, Peer

OTHER = DeviceKey("봇", "e" * 16)
#: A message as long as one may be: a line of 87 KB, half an hour of talk.
LONG = "x" * 64_990
LINE_BYTES = 87_500


class BytesTests(GatewayCase, FairCase):
    """C{limits.bytes_per_second}, by default."""

    pools = (Pool.READING,)

    def say(self, peer: Peer, count: int, text: str = LONG, **more: Any) -> None:
        for number in range(count):
            peer.chat(f"{number}" + text, **more)

    def heard(self, key: DeviceKey) -> int:
        """How many messages of a phone were taken."""
        return sum(origin.key == key for _, origin in self.bots.submitted)

    def serve(self, *settings: tuple[str, str], **more: Any) -> None:
        """Bots answer what is short."""
        bots = FakeDispatcher(lambda chat: chat.text if len(chat.text) < 100 else None)
        super().serve(*settings, dispatcher=bots, **more)
        self.bots = bots

    def test_rate(self) -> None:
        """In the long run a phone is read from at the rate; the other is answered at once."""
        greedy, phone = self.ready(), self.ready(OTHER)
        answered = []
        for second in range(60):
            self.say(greedy, 10)
            phone.chat(str(second))
            self.run_for(0.0)
            answered.append(len(phone.texts))
            self.run_for(1.0)
        self.assertEqual(answered, list(range(1, 61)))
        allowed = (BURST_SECONDS + 60.0) * BYTES_PER_SECOND / LINE_BYTES
        self.assertTrue(0.8 * allowed < self.heard(KEY) < 1.1 * allowed, self.heard(KEY))
        self.assert_gave_way(self.metrics, Pool.READING)

    def test_backlog(self) -> None:
        """Some MB at once, as of a phone that was away, are read at once."""
        phone = self.ready()
        self.say(phone, 40)
        self.assertEqual(self.heard(KEY), 40)
        self.assertEqual(self.metrics.gave_way.labels(Pool.READING).value, 0)

    def test_new_connections(self) -> None:
        """A phone that connects again and again brings no new burst."""
        for _ in range(10):
            peer = self.ready()
            self.say(peer, 40)
            peer.drop()
        allowed = (BURST_SECONDS + 12.0) * BYTES_PER_SECOND / LINE_BYTES
        self.assertLess(self.heard(KEY), 1.1 * allowed)

    def test_new_connections_and_messages(self) -> None:
        """The rate of messages goes on over connections, too."""
        self.serve(("limits.messages_burst", "100"), ("limits.messages_per_second", "1"))
        for _ in range(10):
            peer = self.ready()
            peer.chat(*(str(number) for number in range(100)))
            peer.drop()
        self.assertLess(self.heard(KEY), 120)

    def test_compressed(self) -> None:
        """What counts is what a text takes when it is inflated."""
        client = self.client("gzip")

        def pack(raw: bytes, tail: bytes) -> bytes | None:
            return pack_text(raw, tail, 1000, 0.1)

        self.say(client, 100, pack=pack)
        allowed = BURST_SECONDS * BYTES_PER_SECOND / len(LONG)
        self.assertTrue(0.8 * allowed < self.heard(KEY) < 1.1 * allowed, self.heard(KEY))

    def test_settings(self) -> None:
        """It is set anew while the server runs; 0 lifts it, as it does the default of messages."""
        phone = self.ready()
        self.say(phone, 100)
        for key in ("limits.bytes_per_second", "limits.messages_per_second"):
            self.context.settings = load_settings(None, [(key, "0")], {})
            self.conversation().apply_settings()
            self.run_for(1.1)
            self.say(phone, 100)
        self.run_for(1.1)
        self.assertEqual(self.heard(KEY), 300)


class NamedTests(GatewayCase, FairCase):
    """A phone that is not read from for long."""

    pools = (Pool.READING,)

    def said(self, seconds: float) -> list[str]:
        """What the log has about reading, in so many seconds."""
        with capturedLogs() as events:
            self.run_for(seconds)
        lines = [formatEvent(event) for event in events]
        return [line.partition(": ")[2] for line in lines if "read from" in line]

    def test_work(self) -> None:
        """It is named once, with the reason, and when it is read from again."""
        self.serve(("limits.messages_per_second", "0"))
        self.bots.hold = True
        phone, other = self.ready(), self.ready(OTHER)
        phone.chat(*(str(number) for number in range(1100)))
        other.chat("말")
        self.assertEqual(self.said(LONG_SECONDS - 1.0), [])
        (line,) = self.said(30.0)
        self.assertEqual(line, "not read from for 10 s: too many of its messages are worked on")
        self.assert_gave_way(self.metrics, Pool.READING)
        self.bots.hold = False
        self.bots.release()
        self.assertEqual(self.said(2.0), ["read from again, after 39 s"])
        self.assertEqual(other.texts, ["말"])

    def test_answers(self) -> None:
        """A phone that takes no answers is named before its connection ends."""
        phone = self.ready()
        phone.stop_reading()
        for number in range(400):
            phone.chat(f"{number} {'x' * 3000}")
        self.assertEqual(
            self.said(15.0),
            ["not read from for 10 s: too many answers wait until it takes them"],
        )

    def test_bots_leave_room(self) -> None:
        """As much as bots let wait of a phone does not stop its reading."""
        self.bots.hold = True
        phone = self.ready()
        phone.chat(*(str(number) for number in range(400)))
        for _ in range(7):
            phone.chat("가" * 65_000)
        self.assertTrue(self.conversation()._throttle.open)
