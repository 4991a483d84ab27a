"""Tests for L{domaeka.gateway.flow.writer}: what goes out when, and what waits again."""

import zlib
from base64 import b64encode
from operator import sub
from random import Random

from domaeka.errors import CloseReason
from domaeka.gateway.flow.writer import BATCH_BYTES, Writer
from domaeka.gateway.serving import Step
from domaeka.gateway.transport.kernel import PeerKernel
from domaeka.interfaces import DeviceKey, Priority
from domaeka.policies.outbox import Budget, Outbox
from domaeka.wire import Dialect, Media, Reply
from tests.gateway_case import PICTURE, GatewayCase

OTHER = DeviceKey("봇", "e" * 16)


class _Carrier:
    """A connection whose kernel takes so many bytes, and no more until told."""

    port_outlives = over_rate = False

    def __init__(self, room: int, kernel: PeerKernel) -> None:
        self.room = room
        self.kernel = kernel
        self.written = b""

    def write(self, data: bytes) -> bool:
        self.written += data
        return len(self.written) <= self.room

    def write_more(self, data: bytes) -> None:
        self.written += data

    @property
    def unsent_bytes(self) -> int:
        return max(0, len(self.written) - self.room)

    unread_bytes = 0

    def nothing(self) -> None:
        """Nothing else is asked for."""

    def limit_lines(self, max_bytes: int) -> None:
        """No lines come."""

    def take_back(self) -> int:
        """All that was written is gone."""
        return 0

    start_inflating = pause_reading = resume_reading = finish = disconnect = abort = nothing
    stop_writing = hang_up = look_ahead = nothing


class SenderTests(GatewayCase):
    """Tests for L{Writer} on a connection that takes what it is told to."""

    def setUp(self) -> None:
        super().setUp()
        self.outbox = Outbox(100, 10**6, Budget(10**6), self.clock.seconds)
        self.left: list[Reply] = []

    def sender(self, room: int = 10**9) -> tuple[Writer, _Carrier]:
        """One more connection of the device."""
        carrier = _Carrier(room, PeerKernel(None, self.context))
        sender = Writer(carrier, self.context, self.left.append, lambda: None)
        self.outbox.connected(False)
        sender.outbox = self.outbox
        return sender, carrier

    def put(self, content: str | Media) -> None:
        """Have something wait."""
        self.outbox.put(Reply("방", "1", "봇", content), Priority.HIGH, 30.0)

    def test_cut_at_every_byte(self) -> None:
        """
        Wherever a connection breaks, what the kernel had taken whole does not go again, and the
        rest does, whether or not last words stood behind it.
        """
        for text in "가나다":
            self.put(text)
        sender, carrier = self.sender()
        sender.pump()
        frames = carrier.written.splitlines(keepends=True)
        for last_words in (b"", b'{"event":"error"}\n'):
            for room in range(len(carrier.written) + len(last_words)):
                for text in "가나다":
                    self.put(text)
                sender, cut = self.sender(room)
                sender.pump()
                if last_words:
                    sender.put_urgent("error", last_words)
                    sender.write_urgent()
                sender.release(cut.unsent_bytes)
                whole = cut.written[:room].count(b"\n")
                again, rest = self.sender()
                again.pump()
                self.assertEqual(rest.written, b"".join(frames[min(whole, 3) :]), room)
                again.release(0)

    def test_urgent_first(self) -> None:
        """The connection's own frames go ahead of what waits."""
        self.put("말")
        sender, carrier = self.sender()
        sender.put_urgent("ping", b"ping\n")
        sender.pump()
        self.assertTrue(carrier.written.startswith(b"ping\n{"))

    def test_one_batch_at_a_time(self) -> None:
        """While a batch is on its way nothing follows, so that a ping waits for one batch."""
        for _ in range(9):
            self.put("x" * 6000)
        sender, carrier = self.sender(room=0)
        sender.pump()
        sender.pump()
        first = len(carrier.written)
        self.assertLess(first, BATCH_BYTES + 9000)
        sender.put_urgent("ping", b"ping\n")
        sender.pump()
        self.assertEqual((len(carrier.written), sender.urgent_bytes), (first, 5))
        sender.drained()
        sender.pump()
        self.assertTrue(carrier.written[first:].startswith(b"ping\n{"))

    def test_urgent_bytes(self) -> None:
        """What waits of its own is counted until it is written."""
        sender, _ = self.sender(room=0)
        for _ in range(3):
            sender.put_urgent("error", b"x" * 10_000)
        self.assertEqual(sender.urgent_bytes, 30_000)
        sender.pump()
        self.assertEqual(sender.urgent_bytes, 10_000)
        sender.write_urgent()
        self.assertEqual(sender.urgent_bytes, 0)

    def test_media_left(self) -> None:
        """Files have left once the kernel has them, not when they are written."""
        self.put(Media((PICTURE,)))
        sender, _ = self.sender(room=0)
        sender.pump()
        self.assertEqual(self.left, [])
        sender.drained()
        self.assertEqual([reply.content for reply in self.left], [Media((PICTURE,))])

    def test_media_end_a_batch(self) -> None:
        """Files do not wait for what is behind them to leave: the phone is blocked meanwhile."""
        self.put(Media((PICTURE,)))
        self.put("뒤에")
        sender, carrier = self.sender(room=400)
        sender.pump()
        self.assertEqual(len(self.left), 1)
        self.assertIn(b'"text"', carrier.written[carrier.written.index(b"\n") :])

    def test_files_in_pieces(self) -> None:
        """A picture of 2 MiB is encoded, and compressed, only as the kernel takes it."""
        picture = Random(1).randbytes(2 * 2**20)
        self.outbox = Outbox(100, 2**25, Budget(2**25), self.clock.seconds)
        for deflates in (False, True):
            self.put(Media((picture[:7], picture[7:])))
            sender, carrier = self.sender()
            if deflates:
                sender.start_deflating()
            sender.pump()
            lengths = [len(carrier.written)]
            while not sender.idle:
                sender.drained()
                lengths.append(len(carrier.written))
            self.assertLess(max(map(sub, lengths[1:], lengths)), 80_000)
            inflated = zlib.decompressobj(-15).decompress if deflates else bytes
            self.assertIn(b64encode(picture[7:]) + b"\n", inflated(carrier.written))
            self.assertEqual((len(self.left), self.outbox.messages), (1 + deflates, 0))

    def test_cut_in_a_picture(self) -> None:
        """A picture of which a part has left waits again, and nothing follows that part."""
        for pieces, unsent in ((0, 0), (1, 0), (2, 99), (3, 0)):
            self.put(Media((bytes(150_000),)))
            sender, carrier = self.sender()
            sender.pump()
            for _ in range(pieces):
                sender.drained()
            written = len(carrier.written)
            sender.release(unsent)
            self.assertEqual(self.outbox.messages, int(pieces < 3 or unsent > 0))
            if pieces < 3:
                sender.put_urgent("error", b"error\n")
                sender.write_urgent()
                self.assertEqual(len(carrier.written), written)
            self.outbox.clear()

    def test_what_cannot_be_written(self) -> None:
        """A reply that cannot be written costs nobody anything but itself."""
        odd = Media((PICTURE,), format="\ud800")
        for contents, count in (((odd,), 0), (("하나", odd, "둘"), 2)):
            for content in contents:
                self.put(content)
            sender, carrier = self.sender()
            sender.pump()
            self.assertEqual(carrier.written.count(b"\n"), count)
            self.assertEqual((sender.idle, self.outbox.messages), (True, 0))
            sender.release(0)
        self.assertEqual(len(self.flushLoggedErrors(UnicodeEncodeError)), 2)
        self.assertEqual(self.counted(self.metrics.errors), {"bot": 2})

    def test_counts(self) -> None:
        """Bytes and messages are counted, as are the connection's own frames."""
        self.put("말")
        sender, carrier = self.sender()
        sender.put_urgent("ping", b"ping\n")
        sender.pump()
        self.assertEqual((sender.messages_sent, sender.bytes_sent), (1, len(carrier.written)))
        self.assertEqual(self.metrics.bytes_sent.value, len(carrier.written))
        self.assertEqual(self.counted(self.metrics.frames_sent), {"message": 1, "ping": 1})


class AcknowledgedTests(GatewayCase):
    """Clients with C{ack}."""

    def test_up(self) -> None:
        """A message with an id is acknowledged; one that it has had, too, but not served."""
        peer = self.client("ack")
        peer.chat("하나", client_id="a")
        peer.chat("하나", client_id="a")
        peer.chat("둘", client_id="b")
        self.assertEqual((peer.taken, peer.texts), (["a", "a", "b"], ["하나", "둘"]))

    def test_repeated_line(self) -> None:
        """The very same line again is acknowledged, too: the answer may have been lost."""
        peer = self.client("ack")
        line = peer.line("하나", client_id="a")
        peer.write(line, line)
        self.assertEqual((peer.taken, peer.texts), (["a", "a"], ["하나"]))

    def test_known_over_connections(self) -> None:
        """Ids are known on the next connection, however long it took to come."""
        peer = self.client("ack")
        peer.chat("nothing", client_id="a")
        peer.drop()
        self.run_for(600.0)
        back = self.client("ack")
        back.chat("하나", client_id="a")
        self.assertEqual((back.taken, back.texts), (["a"], []))
        self.assertEqual(back.greetings[0].epoch, peer.greetings[0].epoch)

    def test_not_asked_for(self) -> None:
        """Without the capability an id means nothing."""
        peer = self.client("session")
        peer.chat("하나", "하나", client_id="a")
        self.assertEqual((peer.taken, peer.texts, peer.numbers), ([], ["하나"] * 2, [None] * 2))

    def test_down(self) -> None:
        """What is not acknowledged goes again, under its number, ahead of what is new."""
        peer = self.client("ack")
        peer.chat("하나", "둘", "셋")
        self.assertEqual(peer.numbers, [1, 2, 3])
        peer.ack(1)
        peer.drop()
        back = self.client("ack")
        back.chat("넷")
        self.assertEqual((back.texts, back.numbers), (["둘", "셋", "넷"], [2, 3, 4]))

    def test_acks_of_what_was_never_sent(self) -> None:
        """They are counted and ignored; those that are no numbers are bad frames."""
        peer = self.client("ack")
        peer.chat("하나")
        for number in (b"0", b"2", b"9223372036854775807", b"-1", b'"1"', b"1e400"):
            peer.write(b'{"event":"ack","data":{"message_id":%b}}\n' % number)
        self.assertEqual(peer.errors, ["BAD_FRAME"] * 3)
        self.assertEqual((self.device().outbox.messages, self.context.budget.bad_acks), (1, 3))

    def test_refused_while_draining(self) -> None:
        """What is refused because the server stops is not acknowledged."""
        peer = self.client("ack")
        self.context.serving.take(Step.DRAIN)
        peer.chat("하나", client_id="a")
        self.assertEqual((peer.taken, peer.errors), ([], ["SHUTTING_DOWN"]))
        self.context.serving.take(Step.CALL_OFF)
        peer.chat("하나", client_id="a")
        self.assertEqual((peer.taken, peer.texts), (["a"], ["하나"]))

    def test_refused_line_again(self) -> None:
        """A line that was refused is taken when it comes again, byte for byte the same."""
        peer = self.client("ack")
        line = peer.line("하나", client_id="a")
        self.context.serving.take(Step.DRAIN)
        peer.write(line)
        self.context.serving.take(Step.CALL_OFF)
        peer.write(line, line)
        self.assertEqual((peer.taken, peer.texts), (["a", "a"], ["하나"]))

    def test_acks_not_agreed_on(self) -> None:
        """Without the capability nothing can be acknowledged: it is a bad frame."""
        peer = self.client("session")
        peer.stop_reading()
        self.device().send(Reply("방", "1", "봇", "말" * 300_000))
        peer.ack(1)
        self.assertEqual(self.device().outbox.messages, 1)
        peer.read_on()
        self.assertEqual(peer.errors, ["BAD_FRAME"])

    def test_lines_that_break(self) -> None:
        """Cut again and again, at any byte, an exchange loses and doubles nothing."""
        received: list[tuple[int | None, str]] = []
        waiting = [str(number) for number in range(40)]
        cut_at = 0
        while waiting:
            peer = self.client("ack")
            lines = b"".join(peer.line(text, client_id=text) for text in waiting[:4])
            peer.transport.write(lines[: cut_at % len(lines)] if waiting[4:] else lines)
            self.run_for(0.0)
            known = {number for number, _ in received}
            received += [
                pair for pair in zip(peer.numbers, peer.texts, strict=True) if pair[0] not in known
            ]
            waiting = [text for text in waiting if text not in peer.taken]
            if received and cut_at % 3:
                peer.ack(received[-1][0] or 0)
            peer.drop()
            cut_at += 97
        self.assertEqual([text for _, text in received], [str(number) for number in range(40)])
        self.assertEqual(len(self.bots.submitted), 40)


class LostConnectionTests(GatewayCase):
    """Phones without C{ack}."""

    def test_nothing_doubled(self) -> None:
        """
        What the kernel had not taken goes to the next connection; what it had is not sent again,
        for it may have arrived.
        """
        texts = [f"{number} {'x' * 3000}" for number in range(60)]
        for dialect in Dialect:
            self.bots.hold = True
            peer = self.ready(dialect=dialect)
            peer.chat(*texts)
            peer.stop_reading()
            self.bots.release()
            self.run_for(0.0)
            self.conversation().close(CloseReason.SHUTDOWN, cut=True)
            self.run_for(0.0)
            back = self.greeted(dialect=dialect)
            back.pong()
            self.run_for(1.0)
            self.assertTrue(len(texts) - 25 < len(back.texts) < len(texts) - 10)
            self.assertEqual(back.texts, texts[-len(back.texts) :])
            self.assertEqual(self.context.budget.used, 0)
            back.drop()
