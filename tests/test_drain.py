"""Tests for drains: phones are told, answered, and closed in bounded time."""

from itertools import pairwise

from domaeka.errors import CloseReason
from domaeka.gateway.lifecycle.drain import CLOSED_A_STEP, DRAIN_STEP_SECONDS, HELD_SECONDS
from domaeka.gateway.transport.connection import GatewayFactory
from domaeka.interfaces import DeviceKey, Priority
from domaeka.policies.retry import BASE_DELAY_SECONDS
from domaeka.testing import VirtualServer
from domaeka.wire import Reply, ShutdownNotice
from tests.gateway_case import BrokenWriter, GatewayCase, Peer


def key(number: int) -> DeviceKey:
    """One device of many."""
    return DeviceKey("봇", f"{number:016x}")


def told(peer: Peer) -> list[float]:
    """When a phone was told to come back."""
    return [frame.reconnect_after for frame in peer.frames if isinstance(frame, ShutdownNotice)]


class DrainTests(GatewayCase):
    """Tests for L{Drain}."""

    def begin(self) -> list[bool]:
        """Begin to drain.  @return: what came of it, once it has ended."""
        ended: list[bool] = []
        self.drain.begin("shutdown").addCallback(ended.append)
        self.run_for(0.0)
        return ended

    def test_nobody_there(self) -> None:
        """Without phones it has ended at once."""
        self.assertEqual(self.begin(), [True])

    def test_each_is_told_its_own_time(self) -> None:
        """Each phone is told to come back at a time of its own, from 60 to 120 s on."""
        peers = [self.ready(key(number)) for number in range(20)]
        self.begin()
        times = [told(peer) for peer in peers]
        self.assertEqual({len(time) for time in times}, {1})
        self.assertEqual(len({time[0] for time in times}), 20)
        self.assertTrue(all(60.0 <= time[0] <= 120.0 for time in times))
        self.assertGreater(max(times)[0] - min(times)[0], 30.0)

    def test_port_that_outlives_the_process(self) -> None:
        """
        At a port where connections wait for the next start clients are to wait there, and told
        soon; what waits for them is kept as long as at any other.
        """
        self.server = VirtualServer(self.clock, GatewayFactory(self.shared, outlives=True))
        peers = [self.ready(key(number)) for number in range(20)]
        outboxes = [self.device(key(number)).outbox for number in range(20)]
        now = self.clock.seconds()
        self.begin()
        times = [time for peer in peers for time in told(peer)]
        self.assertGreater(len(set(times)), 5)  # in whole milliseconds
        self.assertTrue(min(times) >= HELD_SECONDS and max(times) <= BASE_DELAY_SECONDS / 2)
        self.assertGreaterEqual(min(outbox.away_until for outbox in outboxes), now + 60.0)

    def test_strangers(self) -> None:
        """Who has only shaken hands is told, too; who has said nothing is closed."""
        greeted, silent = self.greeted(key(1)), self.connect()
        ended = self.begin()
        self.run_for(0.2)
        self.assertEqual((len(told(greeted)), told(silent)), (1, []))
        self.assertEqual((greeted.lost, silent.lost, ended), (True, True, [True]))

    def test_at_most_200_a_second(self) -> None:
        """Phones that owe nothing are closed, but not all in the same moment."""
        self.serve(("server.max_connections", "500"))
        peers = [self.ready(key(number)) for number in range(100)]
        ended = self.begin()
        for step in range(100 // CLOSED_A_STEP + 1):
            lost = sum(peer.lost for peer in peers)
            self.assertTrue(step - 1 <= lost / CLOSED_A_STEP <= step + 1, (step, lost))
            self.run_for(DRAIN_STEP_SECONDS)
        self.assertEqual((sum(peer.lost for peer in peers), ended), (100, [True]))
        self.assertEqual(self.reasons, {"shutdown": 100})

    def test_at_most_200_a_second_at_its_end(self) -> None:
        """Nor do those that are owed answers to the last all go in the same moment."""
        self.bots.hold = True
        peers = [self.ready(key(number)) for number in range(60)]
        for peer in peers:
            peer.chat("말")
        self.begin()
        self.run_for(24.5)
        lost = [0]
        for _ in range(12):
            self.run_for(DRAIN_STEP_SECONDS)
            lost.append(sum(peer.lost for peer in peers))
        steps = [after - before for before, after in pairwise(lost)]
        self.assertTrue(max(steps) <= 2 * CLOSED_A_STEP and lost[-1] == 60, steps)

    def test_more_than_there_is_time_for(self) -> None:
        """Where 200 a second are too few they go evenly, within the time."""
        self.serve(("shutdown.drain_timeout", "0.4"), ("socket.linger_seconds", "0.1"))
        peers = [self.ready(key(number)) for number in range(90)]
        ended = self.begin()
        self.run_for(DRAIN_STEP_SECONDS)
        self.assertLess(sum(peer.lost for peer in peers), 40)
        self.run_for(0.3)
        self.assertEqual((sum(peer.lost for peer in peers), ended), (90, [True]))

    def test_told_late(self) -> None:
        """Who shakes hands only after the beginning is told, too."""
        for number in range(15):
            self.connect(key(number))
        late = self.connect(key(99))
        self.drain.begin("shutdown")
        late.handshake()
        self.run_for(1.0)
        self.assertEqual((len(told(late)), late.lost), (1, True))

    def test_accepted_work_is_answered(self) -> None:
        """What was accepted is answered; what comes after is refused, once."""
        self.bots.hold = True
        peer = self.ready()
        peer.chat("하나", "둘")
        ended = self.begin()
        peer.chat("셋", "넷")
        self.run_for(20.0)
        self.assertEqual((peer.errors, peer.finished, ended), (["SHUTTING_DOWN"], False, []))
        self.bots.release()
        self.run_for(0.2)
        self.assertEqual((peer.texts, peer.lost, ended), (["하나", "둘"], True, [True]))

    def test_one_that_reads_nothing(self) -> None:
        """A phone that reads nothing cannot hold it up, not even for the whole time."""
        peer = self.ready()
        peer.stop_reading()
        peer.chat(*["x" * 30_000] * 8)
        ended = self.begin()
        self.run_for(12.0)
        self.assertEqual((ended, self.registry.connections), ([True], 0))
        self.assertEqual(self.reasons, {"too slow": 1})

    def test_one_that_reads_too_slowly(self) -> None:
        """The time set bounds all, lingering too, for a phone that reads a little as well."""
        self.serve(("shutdown.drain_timeout", "6"))
        peer = self.ready()
        peer.stop_reading()
        peer.chat(*["x" * 12_000] * 8)
        ended = self.begin()
        self.run_for(5.9)
        self.assertEqual(ended, [])
        self.run_for(0.2)
        self.assertEqual((ended, self.registry.connections), ([True], 0))

    def test_work_that_takes_too_long(self) -> None:
        """Bots that do not end cannot hold it up either; the phone is closed in order."""
        self.bots.hold = True
        peer = self.ready()
        peer.chat("하나")
        ended = self.begin()
        self.run_for(24.8)
        self.assertFalse(peer.finished)
        self.run_for(0.4)
        self.assertEqual((peer.lost, ended), (True, [True]))

    def test_work_of_one_that_is_not_there(self) -> None:
        """What was accepted of a phone whose connection ended is answered: it waits for it."""
        self.bots.hold = True
        peer = self.ready()
        peer.chat("하나")
        peer.drop()
        ended = self.begin()
        self.run_for(20.0)
        self.assertEqual(ended, [])
        self.bots.release()
        self.run_for(0.1)
        self.assertEqual((ended, self.device().outbox.messages), ([True], 1))

    def test_work_without_end_of_one_that_is_not_there(self) -> None:
        """It is waited for no longer than for others, and not at all once it is cut short."""
        for short, seconds in ((False, 25.1), (True, 0.1)):
            self.serve()
            self.bots.hold = True
            peer = self.ready()
            peer.chat("하나")
            peer.drop()
            ended = self.begin()
            if short:
                self.drain.cut_short()
            self.run_for(seconds)
            self.assertEqual(ended, [True])

    def test_clock_that_steps(self) -> None:
        """A clock that is set back or on changes nothing."""
        for step in (86_400.0, -3600.0, -32_400.0):
            self.serve()
            self.bots.hold = True
            self.ready().chat("하나")
            ended = self.begin()
            self.run_for(10.0)
            self.wall.step(step)
            self.run_for(13.0)
            self.assertEqual((ended, self.drain.report.connections), ([], 1))
            self.run_for(8.0)
            self.assertEqual(ended, [True])

    def test_one_that_does_not_close(self) -> None:
        """A phone that does not close in answer is cut off."""
        peer = self.ready()
        peer.polite = False
        ended = self.begin()
        self.run_for(0.1)
        self.assertEqual((peer.finished, ended), (True, []))
        self.run_for(6.1)
        self.assertEqual(ended, [True])

    def test_cut_short(self) -> None:
        """Cut short, it ends all at once."""
        self.bots.hold = True
        peers = [self.ready(key(number)) for number in range(30)]
        for peer in peers:
            peer.chat("말")
        ended = self.begin()
        self.run_for(1.0)
        self.assertEqual(ended, [])
        self.drain.cut_short()
        self.run_for(0.1)
        self.assertEqual((ended, all(peer.lost for peer in peers)), ([True], True))

    def test_cut_short_with_one_that_does_not_close(self) -> None:
        """Cut short, it still hands over what is written, but not for long."""
        peer = self.ready()
        peer.polite = False
        ended = self.begin()
        self.drain.cut_short()
        self.run_for(0.9)
        self.assertEqual((peer.finished, ended), (True, []))
        self.run_for(0.2)
        self.assertEqual(ended, [True])

    def test_cut_short_before_it_begins(self) -> None:
        """Two signals in one breath are not one."""
        self.bots.hold = True
        self.ready().chat("말")
        self.drain.cut_short()
        ended = self.begin()
        self.run_for(1.1)
        self.assertEqual(ended, [True])

    def test_says_that_it_is_called_off(self) -> None:
        """Who was told to stay away is told that it need not."""
        self.bots.hold = True
        peer = self.ready()
        peer.chat("하나")
        self.begin()
        self.drain.call_off()
        self.run_for(0.0)
        self.assertEqual(told(peer)[1:], [0.0])

    def test_called_off(self) -> None:
        """Called off, those that are still there are served on."""
        self.bots.hold = True
        peer = self.ready()
        peer.chat("하나")
        ended = self.begin()
        self.assertTrue(self.drain.call_off())
        self.bots.hold = False
        self.bots.release()
        peer.chat("둘")
        self.run_for(60.0)
        self.assertEqual((ended, peer.texts), ([False], ["하나", "둘"]))
        self.assertFalse(self.drain.call_off() or self.drain.running)

    def test_times_after_it_is_called_off(self) -> None:
        """Called off, what is sent has its own time only, for nobody is to stay away."""
        self.bots.hold = True
        self.ready().chat("하나")
        self.begin()
        self.drain.call_off()
        outbox = self.device().outbox
        outbox.connection_lost(())
        item = outbox.put(Reply("방", "1", "봇", "둘"), Priority.NORMAL, 5.0)
        assert item is not None
        self.assertEqual(item.expires_at, self.clock.seconds() + 5.0)

    def test_outlives_mistakes(self) -> None:
        """A mistake of ours with one phone keeps no other from being told, and closed in order."""
        peers = [self.ready(key(number)) for number in range(2)]
        self.conversations()[0]._writer.__class__ = BrokenWriter
        ended = self.begin()
        self.run_for(0.2)
        self.assertEqual((peers[1].lost, len(told(peers[1]))), (True, 1))
        self.run_for(1.0)
        self.assertEqual((ended, self.closes(CloseReason.INTERNAL)), ([True], 1))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def closes(self, reason: CloseReason) -> float:
        """How many connections have ended so."""
        return self.context.metrics.closes.labels(reason).value

    def test_one_that_cannot_be_cut(self) -> None:
        """Not even one that cannot be cut off holds up the end for ever."""
        self.ready()
        self.conversations()[0]._transport = None
        ended = self.begin()
        self.run_for(31.5)
        self.assertEqual((ended, len(self.flushLoggedErrors(AttributeError)) > 0), ([True], True))

    def test_nothing_is_left(self) -> None:
        """It ends with nothing to be called, and can begin again."""
        for _ in range(2):
            self.ready()
            self.begin()
            self.run_for(1.0)
        self.directory.sweep.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_report(self) -> None:
        """How it goes can be seen."""
        self.bots.hold = True
        self.ready().chat("하나", "둘")
        self.assertFalse(self.drain.report.running)
        self.begin()
        self.run_for(10.0)
        report = self.drain.report
        self.assertEqual((report.running, report.told, report.connections), (True, 1, 1))
        self.assertEqual((report.pending, report.seconds_left), (2, 20.0))

    def test_phones_in_the_field(self) -> None:
        """Every version is answered, and finds its way to the next server."""
        for script in ("3.2.0", "3.2.1", "3.3.2", "3.3.2 bare", "3.3.3"):
            self.serve()
            phone = self.phone(script=script)
            self.run_for(1.0)
            self.bots.hold = True
            phone.say("말")
            self.run_for(0.0)
            self.server.open = False
            self.begin()
            self.bots.release()
            self.run_for(1.0)
            self.assertEqual((phone.texts(), phone.online), (["말"], False), script)
            phone.stop()
            self.run_for(1.0)
