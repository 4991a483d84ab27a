"""Tests of the move to another server."""

from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger, formatEvent

from domaeka.errors import CloseReason
from domaeka.gateway.lifecycle.migration import (
    NOTICE_SECONDS,
    Migration,
    MigrationPlan,
    MigrationReport,
)
from domaeka.gateway.lifecycle.probe import ProbeFailed
from domaeka.interfaces import Approval, DeviceKey
from domaeka.schema import Phase
from domaeka.wire import Greeting, Migrated, MigrationNotice, Reply, encode_frame
from tests.gateway_case import KEY, BrokenWriter, FakeSessions, GatewayCase, Peer

OLD = DeviceKey("봇", "old")


class MigrationTests(GatewayCase):
    """Tests for L{Migration}."""

    def setUp(self) -> None:
        super().setUp()
        self.shut = 0
        self.ended: list[MigrationReport] = []
        self.dead = False

    def begin(
        self, open_seconds: float = 0.0, *, spread: float = 30.0, clients: int = 0
    ) -> Migration:
        """A migration with the usual settings."""
        plan = MigrationPlan("new.example", 9000, False, 30.0, spread, clients)
        migration = Migration(
            plan,
            self.directory,
            self.clock,
            self.probe,
            self.shut_port,
            self.ended.append,
            open_seconds,
        )
        migration.start()
        return migration

    def probe(self) -> "Deferred[None]":
        """Whether the other server answers."""
        return fail(ProbeFailed("refused")) if self.dead else succeed(None)

    def shut_port(self) -> None:
        """The port is shut."""
        self.shut += 1

    def clients(self, count: int) -> list[Peer]:
        """As many clients with capabilities, all authenticated."""
        return [
            self.client("ack", key=DeviceKey("봇", f"device {number}")) for number in range(count)
        ]

    def notices(self, peer: Peer) -> list[MigrationNotice]:
        """The notices that a peer was sent."""
        return [frame for frame in peer.frames if isinstance(frame, MigrationNotice)]

    def arrive(self, peer: Peer) -> None:
        """The new server has greeted a client: it says so, and leaves."""
        peer.write(encode_frame("migrated", Migrated("new.example", 9000)))
        peer.finish()

    def test_signed_notice(self) -> None:
        """A client can tell that the notice is ours, and until when it may be followed."""
        (client,) = self.clients(1)
        self.begin()
        self.run_for(2.0)
        (notice,) = self.notices(client)
        self.assertEqual(self.context.signer.sign(notice.signed_text), notice.signature)
        self.assertTrue(30.0 <= notice.migrate_after <= 60.0)
        lasts = notice.expires / 1000 - self.wall()
        self.assertApproximates(lasts, notice.migrate_after + NOTICE_SECONDS, 2.0)

    def test_spread(self) -> None:
        """All are told within the spread, and not at once."""
        clients = self.clients(60)
        migration = self.begin()
        self.run_for(10.0)
        self.assertTrue(10 <= migration.report.told <= 30, migration.report)
        self.run_for(22.0)
        self.assertEqual([len(self.notices(client)) for client in clients], [1] * 60)

    def test_arrivals(self) -> None:
        """They are told to arrive evenly: in no second more than the even rate."""
        self.serve(("server.max_connections", "120"))
        clients = self.clients(120)
        self.begin()
        arrivals: list[float] = []
        for _ in range(128):
            self.run_for(0.25)
            for client in clients:
                arrivals += [
                    self.clock.seconds() + notice.migrate_after for notice in self.notices(client)
                ]
                client.take()
        self.assertEqual(len(arrivals), 120)
        busiest = max(sum(start <= time < start + 1.0 for time in arrivals) for start in arrivals)
        self.assertLessEqual(busiest, 120 / 30.0)

    def test_done(self) -> None:
        """Once the clients have left the port is shut; old phones go last; then it is over."""
        old = self.ready(OLD)
        (client,) = self.clients(1)
        self.begin()
        self.run_for(2.0)
        self.assertEqual(self.shut, 0)
        self.arrive(client)
        self.run_for(1.0)
        self.assertEqual((self.shut, old.lost), (1, True))
        (report,) = self.ended
        self.assertEqual((report.phase, report.told, report.arrived), (Phase.DONE, 1, 1))

    def test_long_spread(self) -> None:
        """A spread is kept, however few they are: the first is told at once."""
        clients = self.clients(12)
        self.begin(spread=60.0)
        told = []
        for _ in range(12):
            self.run_for(1.0)
            told.append(sum(len(self.notices(client)) for client in clients))
            self.arrive(clients[told[-1] - 1])
            self.run_for(4.0)
        self.assertEqual(told, list(range(1, 13)))

    def test_newcomers(self) -> None:
        """A client that comes meanwhile is sent on at once; an old phone is served."""
        self.begin(60.0)
        late = self.client("ack", key=DeviceKey("봇", "late"))
        self.assertEqual([notice.migrate_after for notice in self.notices(late)], [0.0])
        self.assertTrue(late.finished)
        old = self.greeted(OLD)
        old.chat("여기 있어요")
        self.assertEqual(old.texts, ["여기 있어요"])

    def test_heard_out(self) -> None:
        """A client that has moved stays until it has, and has acknowledged, what it is owed."""
        self.bots.hold = True
        (client,) = self.clients(1)
        client.chat("하나", "둘")
        self.begin()
        self.run_for(2.0)
        client.write(encode_frame("migrated", Migrated("new.example", 9000)))
        self.run_for(20.0)
        self.assertFalse(client.finished)
        self.bots.release()
        self.run_for(0.1)
        self.assertEqual((client.texts, client.finished), (["하나", "둘"], False))
        client.ack(2)
        self.assertTrue(client.finished)
        self.assertEqual(self.reasons, {"migrated": 1})

    def test_newcomer_that_is_owed_something(self) -> None:
        """What waits here for a client that comes is handed over before it is closed."""
        key = DeviceKey("봇", "device 0")
        self.begin(60.0)
        self.registry.get_or_create(key).send(Reply("방", "1", "봇", "기다림"))
        (client,) = self.clients(1)
        self.assertEqual((client.texts, client.finished), (["기다림"], False))
        client.ack(1)
        self.assertTrue(client.finished)

    def test_one_that_is_being_greeted(self) -> None:
        """A client that waits for its greeting is told once, behind it."""
        sessions = FakeSessions()
        self.serve(sessions=sessions)
        client = self.connect(OLD)
        client.handshake(signed=True, capabilities=("ack", "session"))
        self.begin()
        self.run_for(5.0)
        self.assertEqual(client.frames, [])
        sessions.answer("token")
        self.run_for(1.1)
        self.assertEqual([type(frame) for frame in client.frames], [Greeting, MigrationNotice])

    def test_one_that_stays(self) -> None:
        """A few that do not go in their time are closed with the old phones."""
        clients = self.clients(30)
        self.begin()
        self.run_for(32.0)
        for client in clients[1:]:
            self.arrive(client)
        self.run_for(57.0)
        self.assertEqual((self.shut, clients[0].finished), (0, False))
        self.run_for(5.0)
        (report,) = self.ended
        self.assertEqual((report.phase, report.arrived, report.missing), (Phase.DONE, 29, 1))
        self.assertTrue(clients[0].finished)

    def test_late_arrival(self) -> None:
        """One that arrives after its time has arrived."""
        clients = self.clients(30)
        migration = self.begin()
        self.run_for(32.0)
        for client in clients[2:]:
            self.arrive(client)
        self.run_for(60.0)
        self.assertEqual((migration.report.arrived, migration.report.missing), (28, 1))
        for client in clients[:2]:
            self.arrive(client)
        self.assertEqual((migration.report.arrived, migration.report.missing), (30, 0))

    def test_work_without_end(self) -> None:
        """A phone that is owed an answer for ever does not keep the move from its end."""
        self.bots.hold = True
        old = self.ready(OLD)
        old.chat("말")
        self.begin()
        self.run_for(29.0)
        self.assertEqual((self.shut, old.finished), (1, False))
        self.run_for(2.0)
        self.assertEqual((old.lost, self.ended[0].phase), (True, Phase.DONE))

    def test_time_to_come_back(self) -> None:
        """A server that was started again leaves its clients time to come, and be sent on."""
        migration = self.begin(120.0)
        self.run_for(100.0)
        (client,) = self.clients(1)
        self.assertTrue(client.finished)
        self.assertEqual((migration.report.sent_on, self.shut), (1, 0))
        self.run_for(25.0)
        self.assertEqual((self.ended[0].phase, self.shut), (Phase.DONE, 1))

    def test_return_after_a_crash(self) -> None:
        """When all come back in one second they are not all sent on in that second."""
        self.serve(("server.max_connections", "100"))
        migration = self.begin(120.0, clients=60)
        self.clients(60)
        self.assertLessEqual(migration.report.sent_on, 4)
        self.run_for(15.0)
        self.assertTrue(20 <= migration.report.told + migration.report.sent_on <= 40)
        self.run_for(16.0)
        self.assertEqual(migration.report.told + migration.report.sent_on, 60)

    def test_comes_back(self) -> None:
        """One that was sent on and comes back is served here; if there are many it halts."""
        migration = self.begin(120.0)
        for _ in range(20):
            (client,) = self.clients(1)
            if not client.finished:
                break
        self.assertEqual((migration.report.sent_on, migration.report.missing), (1, 1))
        self.assertEqual((self.ended[0].phase, self.shut), (Phase.HALTED, 0))
        client.chat("여기")
        self.assertEqual((client.texts, client.finished), (["여기"], False))

    def test_arrived_and_came_back(self) -> None:
        """When the new server dies those that had arrived come back, and are not sent on again."""
        clients = self.clients(30)
        migration = self.begin()
        self.run_for(32.0)
        for client in clients[:2]:
            self.arrive(client)
        self.assertEqual(migration.report.arrived, 2)
        back = self.clients(1)[0]
        self.assertEqual((migration.report.arrived, migration.report.missing), (1, 1))
        self.run_for(5.0)
        self.assertEqual(self.notices(back), [])
        self.client("ack", key=DeviceKey("봇", "device 1"))
        self.assertEqual((self.ended[0].phase, self.ended[0].arrived), (Phase.HALTED, 0))

    def test_away_for_long(self) -> None:
        """One that comes back long after it went was there: it is sent on anew."""
        migration = self.begin(120.0)
        self.clients(1)
        self.run_for(61.0)
        self.clients(1)
        self.assertEqual((migration.report.sent_on, migration.report.missing), (2, 0))

    def test_dead_before_the_port_is_shut(self) -> None:
        """Old phones are not sent to where nobody answers any more."""
        old = self.ready(OLD)
        self.dead = True
        self.begin()
        self.run_for(1.0)
        (report,) = self.ended
        self.assertEqual((report.phase, report.reason), (Phase.HALTED, "refused"))
        self.assertEqual((self.shut, old.finished), (0, False))

    def test_strangers(self) -> None:
        """Who has proven nothing is told nothing, and does not keep it from its end."""
        stranger = self.connect(OLD)
        stranger.handshake(capabilities=("ack",))
        self.begin()
        self.run_for(1.0)
        self.assertEqual((self.notices(stranger), self.shut), ([], 1))

    def test_ever_more(self) -> None:
        """However many clients keep coming it ends; the last ones are told where to go."""
        self.begin(spread=1.0)
        for number in range(130):
            last = self.client("ack", key=DeviceKey("봇", f"late {number}"))
            if self.shut:
                break
            self.run_for(1.0)
        self.assertEqual(self.shut, 1)
        self.run_for(1.0)
        self.assertEqual((len(self.notices(last)), last.finished), (1, True))

    def test_progress(self) -> None:
        """The log says every 5 s how far it has come, and at the end what came of it."""
        said: list[str] = []
        observer: Any = lambda event: said.append(formatEvent(event))  # noqa: E731
        self.patch(Migration, "log", Logger(observer=observer))
        (client,) = self.clients(1)
        self.begin()
        self.run_for(11.0)
        self.arrive(client)
        self.run_for(1.0)
        waits = "migration moving: 1 told, 0 arrived, 0 missing, 0 sent on, 1 connections here"
        done = "migration to new.example:9000 done: 1 told, 1 arrived, 0 missing, 0 sent on"
        self.assertEqual(said[1:], [waits, waits, done])

    def test_interrupted(self) -> None:
        """When the server stops nobody else is told, and it is known that it is not over."""
        clients = self.clients(60)
        self.begin().interrupt()
        self.run_for(10.0)
        self.assertEqual(self.ended[0].phase, Phase.INTERRUPTED)
        self.assertLessEqual(sum(len(self.notices(client)) for client in clients), 1)

    def test_halts(self) -> None:
        """Where too many do not arrive it halts, and nobody else is sent away."""
        self.clients(4)
        self.begin()
        self.run_for(32.0 + 60.0 + 62.0)
        (report,) = self.ended
        self.assertEqual(report.phase, Phase.HALTED)
        late = self.client("ack", key=DeviceKey("봇", "late"))
        self.assertFalse(late.finished)
        self.assertEqual(self.shut, 0)

    def test_outlives_mistakes(self) -> None:
        """A mistake of ours with one old phone keeps no other from moving."""
        broken, old = self.ready(), self.ready(OLD)
        self.conversations()[0]._writer.__class__ = BrokenWriter
        self.begin()
        self.run_for(2.0)
        self.assertEqual((broken.lost, old.lost, self.ended[0].phase), (True, True, Phase.DONE))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.context.metrics.closes.labels(CloseReason.INTERNAL).value, 1)

    def test_called_off(self) -> None:
        """Called off, it tells nobody else."""
        clients = self.clients(60)
        migration = self.begin()
        self.run_for(5.0)
        told = migration.report.told
        migration.call_off()
        self.run_for(60.0)
        self.assertEqual(sum(len(self.notices(client)) for client in clients), told)
        self.assertEqual(self.ended[0].phase, Phase.CALLED_OFF)

    def test_strangers_are_given_back(self) -> None:
        """A phone that had no time to prove itself, whatever it can do, uses up no attempt."""
        self.devices.known[KEY] = Approval.APPROVED
        self.server.client_host = "198.51.100.7"
        for _ in range(30):
            peer = self.connect()
            peer.handshake(capabilities=("ack",))
            self.begin()
            self.run_for(1.0)
            self.assertEqual((peer.refused, peer.lost), (False, True))

    def test_closes_by_name(self) -> None:
        """Old phones that are closed for it have that reason."""
        self.ready(OLD)
        self.begin()
        self.run_for(1.0)
        self.assertEqual(self.context.metrics.closes.labels(CloseReason.MIGRATED).value, 1)
