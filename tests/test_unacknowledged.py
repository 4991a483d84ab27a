"""A path that falls silent: what is held, how a phone's line is finished, and who comes back."""

import socket
from typing import Any

import msgspec

from domaeka.gateway.flow.writer import _SPOILT
from domaeka.interfaces import DeviceKey, Priority
from domaeka.policies.liveness import (
    FINISH_SECONDS,
    GONE_SECONDS,
    HOLD_SECONDS,
    LATE_SECONDS,
)
from domaeka.policies.outbox import DeliveryStatus
from domaeka.testing.network import VirtualTransport
from domaeka.wire import Dialect, Media, Reply, encode_reply
from tests.gateway_case import KEY, GatewayCase

USER_TIMEOUT = (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
RTO_MAX = (socket.IPPROTO_TCP, 44)
OTHER = DeviceKey("봇", "e" * 16)


class SilentPathCase(GatewayCase):
    """Cuts of the path, which neither end notices."""

    def line(self) -> VirtualTransport:
        """The server's end of the newest connection."""
        return self.server.accepted[-1]

    def send(self, content: str | Media, statuses: list[Any] | None = None) -> None:
        """Send something to the phone, and wait no longer than it takes."""
        told = [] if statuses is None else statuses
        reply = Reply("방", "1", KEY.bot_name, content)
        self.registry.devices()[0].send(
            reply, on_status=lambda status, _: told.append(status), priority=Priority.NORMAL
        )
        self.run_for(0.0)


class PhoneTests(SilentPathCase):
    """Phones in the field: without a watchdog, without capabilities."""

    def test_cut(self) -> None:
        """
        A phone whose path was cut for 30 s is back 4 s after it heals, and what was said meanwhile
        is answered on its new connection, once.
        """
        phone = self.phone()
        self.run_for(60.0)
        line = self.line()
        line.silence()
        self.send("과거")  # what shows that the path is silent
        for number in range(4):
            phone.say(str(number))
            self.run_for(7.5)
        self.assertEqual((phone.texts(), self.reasons), ([], {}))
        line.silence(False)
        self.run_for(5.0)
        self.assertEqual(phone.texts()[0], "과거")  # it was in flight
        self.assertEqual(sorted(phone.texts()[1:]), ["0", "1", "2", "3"])
        self.assertEqual(len(self.server.accepted), 2)
        self.run_for(60.0)
        self.assertEqual((len(phone.texts()), self.reasons), (5, {"unacknowledged": 1}))
        self.assertEqual(self.counted(self.metrics.errors), {})

    def test_late_pongs(self) -> None:
        """Late answers to pings are no errors, and late lines behind them are read."""
        peer = self.ready()
        peer.polite = False
        self.run_for(60.0)
        line = self.line()
        line.silence()
        self.send("과거")
        self.run_for(FINISH_SECONDS + 2.0)
        line.silence(False)
        self.run_for(2.0)
        back = self.greeted()
        back.pong()
        self.assertTrue(self.conversations()[0].peer.closing)
        for _ in range(12):
            self.run_for(0.01)
            peer.pong()
        peer.chat("늦은 말")
        self.assertEqual(back.texts, ["늦은 말"])
        self.assertEqual(self.counted(self.metrics.errors), {})

    def test_talk_falls_silent(self) -> None:
        """A phone that has talked is pinged 5 s later, and so is finished within 30 s of a cut."""
        phone = self.phone()
        self.run_for(60.0)
        for number in range(10):
            phone.say(str(number))
            self.run_for(2.0)
        line = self.line()
        line.silence()
        self.run_for(28.0)
        self.assertTrue(line._write_closed)
        for number in range(10):
            phone.say(f"뒤 {number}")
            self.run_for(1.0)
        line.silence(False)
        self.run_for(60.0)
        self.assertEqual(len(set(phone.texts())), 20)
        self.assertEqual(len(phone.texts()), 20)

    def test_talk_costs_few_pings(self) -> None:
        """It is one more ping a minute at most, and none where nobody talks."""
        phone = self.phone()
        for _ in range(360):
            phone.say("nothing")
            self.run_for(10.0)
        pings = self.counted(self.metrics.frames_sent)["ping"]
        self.assertLess(pings, 190)
        self.run_for(3600.0)
        self.assertLess(self.counted(self.metrics.frames_sent)["ping"] - pings, 125)

    def test_short(self) -> None:
        """A cut that heals within 20 s costs no connection, and a second at most."""
        peer = self.ready()
        line = self.line()
        line.silence()
        self.send("과거")
        self.run_for(HOLD_SECONDS + 1.5)
        self.send("기다림")
        self.assertEqual(bytes(line.in_flight).count(b"\n"), 1)
        self.run_for(FINISH_SECONDS - HOLD_SECONDS - 3.0)
        line.silence(False)
        self.run_for(1.0)
        self.assertEqual((peer.texts, peer.finished), (["과거", "기다림"], False))
        self.run_for(10.0)
        self.assertEqual(self.reasons, {})

    def test_heard_again(self) -> None:
        """What comes from a phone that acknowledges with it has messages go on at once."""
        peer = self.ready()
        line = self.line()
        line.silence()
        self.send("과거")
        self.run_for(6.5)
        self.send("기다림")
        line.silence(False)
        self.run_for(0.0)
        self.assertEqual(peer.texts, ["과거"])
        peer.pong()
        self.assertEqual(peer.texts, ["과거", "기다림"])

    def test_window_closed(self) -> None:
        """A phone that acknowledges, and takes no more, is not finished for that."""
        peer = self.ready()
        peer.stop_reading()
        self.send("x" * 30_000)
        self.run_for(FINISH_SECONDS + 5.0)
        self.assertFalse(peer.finished)
        self.assertEqual(self.reasons, {})

    def test_held_up(self) -> None:
        """A process that was held up finishes nobody for it."""
        self.ready()
        line = self.line()
        line.silence()
        self.send("과거")
        self.run_for(2.0)
        self.clock.advance(FINISH_SECONDS + 10.0)
        self.assertFalse(line._closing_write)

    def test_only_up(self) -> None:
        """Lines that come on a finished connection while there is no other are answered later."""
        peer = self.ready()
        peer.polite = False
        line = self.line()
        line.silence()
        self.send("과거")
        self.run_for(FINISH_SECONDS + 2.5)
        line.silence(False)
        self.run_for(0.0)
        self.assertTrue(peer.finished)
        peer.chat("늦은 말")
        self.assertEqual(peer.texts, ["과거"])
        back = self.greeted()
        back.pong()
        self.assertEqual(back.texts, ["늦은 말"])
        self.run_for(0.01)
        peer.chat("더 늦은 말")
        self.assertEqual(back.texts, ["늦은 말", "더 늦은 말"])
        self.run_for(LATE_SECONDS + 2.0)
        self.assertTrue(peer.lost)

    def test_newer_while_held(self) -> None:
        """A phone that comes back by itself meanwhile is not told on a dead line, and not reset."""
        peer = self.ready()
        line = self.line()
        line.silence()
        self.send("과거")
        peer.transport.write(peer.line("오는 중"))
        self.run_for(HOLD_SECONDS + 2.0)
        back = self.ready()
        line.silence(False)
        self.run_for(0.0)
        self.assertEqual((peer.errors, peer.finished), ([], True))
        self.assertEqual(back.texts, ["오는 중"])

    def test_away(self) -> None:
        """It is shown as away after C{socket.user_timeout_ms}, and kept as long as TCP would."""
        self.ready()
        line = self.line()
        line.silence()
        self.send("과거")
        self.run_for(55.0)
        self.assertIsNotNone(self.registry.find(KEY))
        self.run_for(10.0)
        self.assertIsNone(self.registry.find(KEY))
        self.assertEqual(len(self.conversations()), 1)
        self.assertFalse(self.device().is_connected)
        self.send("앞으로")
        self.directory.decisions.forget(KEY)
        self.assertEqual(self.device().outbox.messages, 0)
        self.run_for(GONE_SECONDS)
        self.assertEqual(self.conversations(), [])
        self.assertEqual(self.reasons, {"unacknowledged": 1})

    def test_broken_picture(self) -> None:
        """A picture that breaks off is spoilt, so that no phone shows a part of it."""
        self.ready()
        line = self.line()
        line.silence()
        self.send(Media((bytes(2_000_000),)))
        self.run_for(FINISH_SECONDS + 3.0)
        self.assertTrue((bytes(line.in_flight) + line.dataBuffer).endswith(b'"\n'))
        self.assertEqual(self.device().outbox.messages, 1)

    def test_backlog(self) -> None:
        """What the kernel had not even taken goes out on the connection that the phone has then."""
        for back_first in (True, False):
            peer = self.ready()
            peer.polite = False
            line = self.line()
            line.silence()
            texts = [str(number) * 15_000 for number in range(8)]
            for text in texts:
                self.send(text)
            self.run_for(HOLD_SECONDS + 2.0 if back_first else FINISH_SECONDS + 2.0)
            self.assertEqual(bytes(line.in_flight).count(b"\n"), 3)  # and a part of the fourth
            back = self.greeted()
            back.pong()
            self.assertEqual([text[0] for text in back.texts], list("34567"))
            self.assertTrue((bytes(line.in_flight) + line.dataBuffer).endswith(b'"\n'))

    def test_spoilt(self) -> None:
        """A frame is no JSON once it is spoilt, wherever it breaks off."""
        frame = encode_reply(Reply("방", "1", KEY.bot_name, 'a"\\}'), Dialect.V33, "0", None, None)
        for length in range(1, len(frame)):
            with self.assertRaises((msgspec.DecodeError, UnicodeDecodeError)):
                msgspec.json.decode(frame[:length] + _SPOILT[:-1])


class EndTests(SilentPathCase):
    """Ends of the server, and the bound of what waits."""

    def test_drain(self) -> None:
        """A drain waits neither for messages that a silent path holds, nor for late lines."""
        late, held = self.ready(), self.ready(OTHER)
        self.server.accepted[0].silence()
        self.send("과거")
        self.run_for(FINISH_SECONDS + 45.0)
        line = self.line()
        line.silence()
        self.registry.devices()[1].send(Reply("방", "1", KEY.bot_name, "과거"))
        self.run_for(HOLD_SECONDS + 2.0)
        self.registry.devices()[1].send(Reply("방", "1", KEY.bot_name, "기다림"))
        began = self.clock.seconds()
        done = self.drain.begin("shutdown")
        self.run_for(8.0)
        self.assertTrue(self.successResultOf(done))
        self.assertLess(self.clock.seconds() - began, 9.0)
        self.assertEqual((late.lost, held.lost), (False, False))  # they notice later

    def test_bound(self) -> None:
        """No more connections wait for late lines than phones may be connected."""
        self.serve(("server.max_connections", "4"))
        for number in range(12):
            self.ready(DeviceKey("봇", f"{number:016x}"))
            self.line().silence()
            self.registry.devices()[-1].send(Reply("방", "1", KEY.bot_name, "과거"))
            self.run_for(75.0)
        self.assertEqual(len(self.conversations()), 8)

    def test_bound_is_fair(self) -> None:
        """Beyond that the first gives way: a phone that closes in order is told why, and read."""
        self.serve(("server.max_connections", "4"))
        for number in range(8):
            self.ready(DeviceKey("봇", f"{number:016x}"))
            self.line().silence()
            self.registry.devices()[-1].send(Reply("방", "1", KEY.bot_name, "과거"))
            self.run_for(75.0)
        peer = self.ready()
        self.directory.decisions.shut_out(self.conversation())
        self.run_for(0.0)
        self.assertEqual(peer.errors, ["BANNED"])
        self.assertEqual(len(self.conversations()), 7)

    def test_full(self) -> None:
        """All phones of a full server come back, though their old lines are silent still."""
        self.serve(("server.max_connections", "16"))
        keys = [DeviceKey("봇", f"{number:016x}") for number in range(16)]
        for key in keys:
            self.ready(key)
            self.line().silence()
            self.device(key).send(Reply("방", "1", KEY.bot_name, "과거"))
        self.run_for(FINISH_SECONDS + 2.0)
        peers = [self.ready(key) for key in keys]
        self.assertEqual([peer.lost for peer in peers], [False] * 16)
        self.assertEqual(self.directory.admission.phones, 16)


class KernelTests(SilentPathCase):
    """What the kernel is told of a phone's connection."""

    def test_retransmits_soon(self) -> None:
        """It retransmits every 2 s, and never gives up by itself; a client's is left alone."""
        self.ready()
        options = self.line().getHandle().options
        self.assertEqual(options, {USER_TIMEOUT: 1_908_000, RTO_MAX: 2000})
        self.client("session", "ack")
        self.assertEqual(self.line().getHandle().options, {})

    def test_older_kernel(self) -> None:
        """Without that option the end of its time-out, which is put off, has it retransmit."""
        self.ready()
        line = self.line()
        kernel = line.getHandle()
        kernel.refuses.add(44)
        del kernel.options[RTO_MAX]
        line.silence()
        self.send("과거")
        self.run_for(10.5)
        soon = kernel.options[USER_TIMEOUT]
        self.run_for(2.0)
        self.assertEqual(kernel.options[USER_TIMEOUT] - soon, 2000)
        self.assertLess(soon, 16_000)
        line.silence(False)
        self.run_for(2.0)
        self.assertEqual(kernel.options, {USER_TIMEOUT: 1_908_000})

    def test_older_kernel_tries_on(self) -> None:
        """It does so as long as late lines are waited for, whatever holds the process up."""
        self.ready()
        line = self.line()
        kernel = line.getHandle()
        kernel.refuses.add(44)
        line.silence()
        self.send("과거")
        began = self.clock.seconds()
        for _ in range(40):
            self.run_for(3.0)
            self.clock.advance(4.0)
            self.run_for(1.5)
            silent_ms = 1000 * (self.clock.seconds() - began)
            self.assertGreater(kernel.options[USER_TIMEOUT], silent_ms + 1000)
            if silent_ms > 10_000:
                self.assertLess(kernel.options[USER_TIMEOUT], silent_ms + 6000)
        self.assertTrue(self.conversation().peer.closing)

    def test_finished(self) -> None:
        """One that has finished itself is given up as any other, once our process is through."""
        peer = self.ready()
        line = self.line()
        peer.finish()
        self.assertTrue(peer.lost)
        self.assertEqual(line.getHandle().options[USER_TIMEOUT], 60_000)


class ClientTests(SilentPathCase):
    """Clients with C{ack}, whose own watchdogs see to their lines."""

    def test_expires(self) -> None:
        """What was sent on a dead line, or waits for it, ends as expired, and is counted."""
        self.client("ack")
        line = self.line()
        line.silence()
        statuses: list[Any] = []
        self.send("보낸 것", statuses)
        self.run_for(5.0)
        self.send("기다리는 것", statuses)
        self.assertEqual(statuses, [DeliveryStatus.SENT])
        self.run_for(40.0)
        self.assertEqual(statuses[1:], [DeliveryStatus.EXPIRED] * 2)
        self.assertEqual(self.context.budget.expired, 2)
        self.assertFalse(line._closing_write)

    def test_comes_back(self) -> None:
        """What waited for it goes out on the connection that it makes next, in order, once."""
        self.client("ack")
        self.line().silence()
        self.send("보낸 것")
        self.run_for(5.0)
        self.send("기다리는 것")
        back = self.client("ack")
        self.run_for(1.0)
        self.assertEqual(back.texts, ["보낸 것", "기다리는 것"])
