"""Signatures are good once, and nobody's take those of an innocent phone from it."""

import json
from typing import Any

from domaeka.gateway import doubts
from domaeka.interfaces import DeviceKey
from domaeka.policies import signatures
from domaeka.pools import Pool
from domaeka.wire import Deflater, Ping
from tests.fairness import FairCase
from tests.gateway_case import KEY, GatewayCase, Peer

OTHER = DeviceKey("봇", "other")
#: Lines of a phone that are not served, and leave a signature on the wire.
REFUSED = {
    "too long": lambda line: line.replace(b"\n", b"QUFB" * 90_000 + b"\n"),
    "a brace in the tail": lambda line: line.replace(b"\n", b"}\n"),
    "an unknown event": lambda line: line.replace(b'"message"', b'"nonsense"', 1),
    "no JSON": lambda line: line.replace(b'"event":', b'"event"', 1),
    "of another type": lambda line: line.replace(b'"message_type":"text"', b'"message_type":"x"'),
    "as the auth of a wrong form": lambda line: line.replace(b'"version":', b'"version":1,"_":', 1),
}


def stolen(line: bytes, text: str = "OWNED") -> bytes:
    """A line with the C{auth} of C{line}, and another text."""
    start = line.index(b'"auth":') + 7
    auth, _ = json.JSONDecoder().raw_decode(line[start:].split(b"\n")[0].decode())
    data = {"room": "방", "text": text, "channelId": "9", "auth": auth}
    return json.dumps({"event": "analyze", "data": data}).encode() + b"\n"


class ThiefCase(GatewayCase):
    """A phone, and somebody who hears its line and has no key."""

    def ready(self, key: DeviceKey = KEY, **more: Any) -> Peer:
        """A phone that has authenticated, by another signature than those of its lines."""
        peer = super().ready(key, **more)
        self.run_for(0.01)
        return peer

    def answers(self, phone: Peer, pings: int) -> None:
        """A phone answers so many pings as they come, the last one that came included."""
        answered, last = phone.pings - 1, phone.pings - 1 + pings
        for _ in range(30 * pings):
            if answered < min(phone.pings, last):
                answered += 1
                phone.pong()
            self.run_for(0.1)

    def assert_worthless(self, line: bytes, why: str = "") -> None:
        """Nobody is served by the signature of a line, and the phone goes on as before."""
        thief = self.connect(OTHER)
        thief.write(stolen(line))
        self.run_for(8.0)
        texts = [chat.text for chat, _ in self.bots.submitted]
        self.assertNotIn("OWNED", texts, why)
        thief.drop()


class RefusedTests(ThiefCase):
    """Lines that are refused, cut or never read."""

    def test_refused(self) -> None:
        """A line that was refused leaves a signature that is worth nothing."""
        for why, change in REFUSED.items():
            self.serve()
            phone = self.ready()
            line = phone.line("말")
            phone.write(change(line))
            self.assertEqual(len(phone.errors), 1, why)
            self.assert_worthless(line, why)
            phone.chat("weiter")
            self.assertEqual(phone.texts, ["weiter"], why)

    def test_before_its_time(self) -> None:
        """A pong ahead of the handshake is refused, and its signature is spent."""
        phone = self.connect()
        line = phone.writer.pong("?")
        phone.write(line)
        self.assertEqual(phone.errors, ["AUTH_REQUIRED"])
        self.assert_worthless(line)

    def test_repeated_handshake(self) -> None:
        """So is that of a handshake which changes nothing, or names another device."""
        for key in (KEY, OTHER):
            phone = self.ready()
            line = phone.writer.handshake(signed=True).replace(
                KEY.device_id.encode(), key.device_id.encode(), 1
            )
            phone.write(line)
            self.assert_worthless(line)

    def test_ahead_of_the_clock(self) -> None:
        """A signature of a clock that is ahead is refused now, and when its time has come."""
        for ahead in (301.0, 700.0, 90_000.0):
            self.serve()
            phone = self.greeted()
            phone.clock_offset = ahead
            line = phone.line("말")
            phone.write(line)
            self.assertEqual(phone.errors, ["AUTH_FAILED"])
            self.run_for(ahead - 250.0)
            self.assert_worthless(line, f"{ahead} s")

    def test_while_the_clock_was_wrong(self) -> None:
        """What is too old by a clock of ours that was set forward is spent once it is set back."""
        phone = self.ready()
        line = phone.line("말")
        self.wall.step(7200.0)
        phone.write(line)
        self.assertEqual(phone.errors, ["AUTH_FAILED"])
        self.wall.step(-7200.0)
        self.assert_worthless(line)

    def test_every_cut(self) -> None:
        """Wherever the connection breaks: who has the whole signature can do nothing with it."""
        whole = self.ready().line("말")
        end = whole.index(b'"signature":"') + 13 + 64
        for cut in (end, end + 1, end + 2, len(whole) - 3, len(whole) - 1):
            self.serve()
            phone = self.ready()
            line = phone.line("말")
            phone.write(line[:cut])
            phone.drop()
            self.assert_worthless(line, f"cut at {cut} of {len(whole)}")

    def test_nearly_all_of_a_signature(self) -> None:
        """Nobody can guess the rest of a signature of which some digits were cut off."""
        phone = self.ready()
        line = phone.line("말")
        phone.write(line[: line.index(b'"signature":"') + 13 + 60])
        phone.drop()
        self.assert_worthless(line)

    def test_cut_line_comes_again(self) -> None:
        """The phone repeats a line whose half came: it is served once, on its next connection."""
        first = self.ready()
        line = first.line("말")
        first.write(line[:-5])
        first.drop()
        phone = self.connect()
        phone.write(line)
        phone.handshake()
        self.assertEqual(phone.texts, [])
        phone.pong()
        phone.write(line)
        self.assertEqual(phone.texts, ["말"])

    def test_while_it_closes(self) -> None:
        """Lines behind the one that ended the connection, in one read or later, are spent."""
        for later in (False, True):
            phone = self.ready()
            phone.polite = False
            line = phone.line("말")
            junk = b"x\n" * 10
            phone.write(junk if later else junk + line)
            self.assertIn("BAD_FRAME", phone.errors)
            if later:
                phone.write(line)
            self.assert_worthless(line, f"later: {later}")

    def test_behind_a_line_without_end(self) -> None:
        """So are those in a line that is too long, and behind it, wherever it is cut."""
        for length in (1_048_000, 1_048_570, 1_100_000):
            phone = self.ready()
            phone.polite = False
            line = phone.line("말")
            phone.write(b"x" * length + line)
            phone.write(b"x" * 100_000)
            self.assert_worthless(line, f"{length}")

    def test_in_a_deflate_stream(self) -> None:
        """A client's stream is looked at, too, when nobody reads it any more."""
        client = self.client("deflate", "session")
        self.run_for(0.01)
        client.polite = False
        line = client.line("말")
        deflater = Deflater()
        client.dataReceived = lambda data: None  # type: ignore[method-assign]
        client.write(deflater.pack(b"x\n" * 10 + line))
        self.assert_worthless(line)

    def test_while_it_waits(self) -> None:
        """Lines that wait because the phone says too much are spent, and served in their turn."""
        self.serve(("limits.messages_per_second", "1"), ("limits.messages_burst", "5"))
        phone = self.ready()
        lines = []
        for number in range(8):
            lines.append(phone.line(f"{number}"))
            self.run_for(0.01)  # each has a signature of its own
        phone.write(*lines[:-1], lines[-1][:-9])
        self.assertLess(len(phone.texts), 7)
        for line in lines[len(phone.texts) :]:
            thief = self.connect(OTHER)
            thief.write(stolen(line))
            self.assertEqual(thief.errors, ["AUTH_FAILED"])
            thief.drop()
        phone.write(lines[-1][-9:])
        self.run_for(20.0)
        self.assertEqual(phone.texts, [f"{number}" for number in range(8)])

    def test_of_another_device(self) -> None:
        """A signature under another name than the connection's is spent."""
        phone = self.ready()
        other = self.connect(OTHER)
        line = other.line("말")
        phone.write(line)
        self.assertEqual(phone.errors, ["AUTH_FAILED"])
        self.assert_worthless(line)

    def test_the_phone_is_told(self) -> None:
        """A phone whose signature is shown by another peer is told so, once a minute."""
        phone = self.ready()
        line = phone.line("말")
        phone.write(line)
        phone.take()
        for _ in range(3):
            self.connect(OTHER).write(stolen(line))
        self.assertEqual([type(frame).__name__ for frame in phone.take()], ["ReplayNotice"])


class FirstProofTests(ThiefCase):
    """The first proof of a connection: made lately, by the phone's own clock."""

    def old(self, age: float, offset: float = 0.0) -> bytes:
        """A line that the phone made C{age} seconds ago, and which never came here."""
        phone = self.connect()
        phone.clock_offset = offset
        line = phone.line("말")
        phone.drop()
        self.run_for(age)
        return line

    def test_age(self) -> None:
        """It is served up to 45 s later, by the phone's own clock; a thief has nothing later."""
        for offset in (-200.0, 0.0, 200.0):
            for age, texts in ((44.0, ["말"]), (46.0, [])):
                self.serve()
                self.devices.usual_lead = offset
                self.run_for(60.0)
                line = self.old(age, offset)
                phone = self.connect()
                phone.write(line)
                self.assertEqual(phone.texts, texts, (offset, age))

    def test_backlog_waits_for_a_pong(self) -> None:
        """A phone whose clock nobody knew is pinged at once; its lines are served, in order."""
        self.run_for(60.0)
        self.devices.usual_lead = None
        phone = self.connect()
        phone.clock_offset = -100.0
        phone.chat("하나", "둘")
        self.assertEqual((phone.texts, phone.pings), ([], 1))
        self.answers(phone, 6)
        self.assertEqual(phone.texts, ["하나", "둘"])
        self.assertApproximates(self.devices.leads[KEY], -100.0, 0.1)

    def test_clock_that_was_set(self) -> None:
        """A phone that sets its clock, either way, is back after some pongs."""
        for before, after, pongs in ((0.0, 200.0, 3), (200.0, 0.0, 3), (0.0, -200.0, 6)):
            self.serve()
            self.devices.leads[KEY] = before
            self.run_for(60.0)
            phone = self.greeted()
            phone.clock_offset = after
            phone.chat("말")
            self.assertEqual(phone.texts, [])
            self.answers(phone, pongs)
            self.assertEqual(phone.texts, ["말"], (before, after))
            phone.chat("weiter")
            self.assertEqual(phone.texts, ["말", "weiter"])

    def test_recorded_pongs(self) -> None:
        """Recorded signatures do not pass for answers to pings at random times."""
        self.run_for(60.0)
        recorded = []
        phone = self.connect()
        for _ in range(5):
            recorded.append(phone.line("말"))
            self.run_for(30.0)
        phone.drop()
        thief = self.greeted()
        thief.write(recorded[0])
        for line in recorded[1:4]:
            start = line.index(b'"auth":')
            auth = line[start : line.index(b"}", start) + 1]
            stamp = thief.frames[-1].server_timestamp  # type: ignore[union-attr]
            thief.write(b'{"event":"pong","data":{"server_timestamp":%b,%b}}\n' % (stamp, auth))
            self.run_for(3.0)
        self.assertEqual(self.bots.submitted, [])
        self.assertFalse(self.conversation().peer.authenticated)

    def test_recorded_at_another_server(self) -> None:
        """A line of each two seconds suits no series of pings, answered at once or late."""
        for delay in (0.0, 5.0):
            self.serve()
            self.run_for(60.0)
            phone = self.connect()
            recorded = {}
            for _ in range(60):
                recorded[self.clock.seconds()] = phone.line("말")
                self.run_for(2.0)
            phone.drop()
            thief = self.greeted()
            first = min(recorded)
            thief.write(recorded.pop(first))
            ago = self.clock.seconds() - first - 4.0
            for _ in range(25):
                if thief.lost:
                    break
                pings = [frame for frame in thief.frames if isinstance(frame, Ping)]
                stamp = pings[-1].server_timestamp
                self.run_for(delay)
                wanted = self.clock.seconds() - delay / 2 - ago
                line = recorded.pop(min(recorded, key=lambda at: abs(at - wanted)))
                start = line.index(b'"auth":')
                auth = line[start : line.index(b"}", start) + 1]
                thief.write(b'{"event":"pong","data":{"server_timestamp":%b,%b}}\n' % (stamp, auth))
                self.run_for(1.0)
            self.assertEqual(self.bots.submitted, [], delay)

    def test_restart(self) -> None:
        """What was said before the process began proves nothing, however soon it comes."""
        self.run_for(60.0)
        phone = self.ready()
        line = phone.line("말")
        phone.write(line)
        self.run_for(0.5)
        self.serve()
        self.run_for(5.0)
        self.assert_worthless(line)
        self.bots.submitted.clear()
        back = self.connect()  # it was never answered, and says it again
        back.write(line)
        self.assertEqual(back.texts, [])

    def test_known_by_a_pong_after_it(self) -> None:
        """After a restart a phone's queue is served as soon as its pong has come."""
        phone = self.connect()
        line = phone.line("말")
        self.run_for(5.0)
        self.serve()
        self.run_for(5.0)
        phone = self.connect()
        phone.write(line, phone.writer.handshake())
        self.assertEqual(phone.texts, [])
        phone.pong()
        self.assertEqual(phone.texts, ["말"])

    def test_signature_behind_unsigned_chat(self) -> None:
        """Where unsigned chat is let through, a first signature is judged like any other."""
        self.serve(("auth.mode", "optional"))
        self.run_for(60.0)
        phone = self.greeted()
        phone.chat("ohne", signed=False)
        phone.clock_offset = -100.0
        phone.chat("mit")
        self.assertEqual(phone.texts, ["ohne"])
        self.assertFalse(self.conversation().peer.signed)
        self.answers(phone, 6)
        self.assertEqual(phone.texts, ["ohne", "mit"])
        self.assertTrue(self.conversation().peer.signed)

    def test_kernel_of_a_peer_cut_off(self) -> None:
        """What waits unread in the kernel when we cut a connection off is spent."""
        self.serve(("server.max_connections", "2"))
        phone = self.connect()
        line = phone.line("말")
        phone.write(line[:-1])  # no end: it is not judged
        self.greeted(DeviceKey("봇", "2"))
        self.greeted(DeviceKey("봇", "3"))
        self.assertTrue(phone.lost)  # it gave way
        self.assert_worthless(line)

    def test_doubtful_handshake(self) -> None:
        """A client whose signed handshake is in doubt is greeted as a stranger, and proves it."""
        self.run_for(60.0)
        client = self.connect()
        client.clock_offset = -100.0
        client.handshake(signed=True, capabilities=("ack", "session"))
        self.assertIsNone(client.greetings[0].session_token)
        self.answers(client, 6)
        client.chat("말")
        self.assertEqual(client.texts, ["말"])


class DoubtfulLinesTests(ThiefCase, FairCase):
    """Memory for lines that wait for a proof."""

    pools = (Pool.DOUBTFUL_LINES,)

    def test_greedy_peers(self) -> None:
        """Peers that hold much give way; the phone's lines wait, and are served."""
        self.patch(doubts, "MAX_TOTAL_BYTES", 20_000)
        self.devices.usual_lead = None
        self.run_for(60.0)
        phone = self.connect()
        phone.clock_offset = -100.0
        phone.chat("하나", "둘")
        greedy = [self.connect(DeviceKey("봇", f"greedy-{number}")) for number in range(3)]
        for peer in greedy:
            peer.clock_offset = -100.0
            for number in range(9):
                peer.chat(f"{number}" * 100)
        self.assertLessEqual(self.context.doubts._bytes, 20_000)
        self.answers(phone, 6)
        self.assertEqual(phone.texts, ["하나", "둘"])
        self.assert_gave_way(self.metrics, Pool.DOUBTFUL_LINES)

    def test_all_is_freed(self) -> None:
        """Lines of a peer that has gone are held no more."""
        self.run_for(60.0)
        peer = self.connect()
        peer.clock_offset = -100.0
        peer.chat("말")
        self.assertGreater(self.context.doubts._bytes, 0)
        peer.drop()
        self.assertEqual(self.context.doubts._bytes, 0)


class DevicesTests(ThiefCase, FairCase):
    """Signatures of more devices than are remembered."""

    pools = (Pool.SIGNATURES,)

    def invent(self, count: int, address: str) -> list[bytes]:
        """Somebody with the key invents devices.  @return: what they said."""
        lines = []
        for number in range(count):
            peer = self.connect(DeviceKey("봇", f"invented-{address}-{number}"))
            self.conversation().peer.address = address
            lines.append(peer.line("nothing"))
            peer.write(lines[-1])
            peer.drop()
        return lines

    def test_inventor(self) -> None:
        """A new phone at another address is served, and one that was here stays protected."""
        self.patch(signatures, "MAX_DEVICES", 10)
        first = self.ready()
        line = first.line("하나")
        first.write(line)
        lines = self.invent(30, "198.51.100.1")
        new = self.ready(OTHER)
        new.chat("말")
        self.assertEqual((new.texts, new.errors), (["말"], []))
        self.assert_gave_way(self.metrics, Pool.SIGNATURES)
        self.assert_worthless(line)
        for each in lines:  # not those of the inventor's either, which were forgotten
            self.assert_worthless(each)

    def test_neighbour(self) -> None:
        """A phone that is put out because of a neighbour says what it says all the same."""
        self.patch(signatures, "MAX_DEVICES", 10)
        phone = self.ready()
        self.invent(30, self.conversation().peer.address)
        phone.chat("하나")
        phone.chat("둘")
        self.assertEqual((phone.texts, phone.errors), (["하나", "둘"], []))
