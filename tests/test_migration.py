"""Tests of the move to another server."""

from domaeka.errors import CloseReason
from domaeka.gateway.migration import Migration, MigrationPlan, MigrationReport, Phase
from domaeka.interfaces import DeviceKey
from domaeka.phonewire import Moving, encode_migrated
from tests.gateway_case import GatewayCase, Peer

OLD = DeviceKey("봇", "old")


class MigrationTests(GatewayCase):
    """Tests for L{Migration}."""

    def setUp(self) -> None:
        super().setUp()
        self.shut = 0
        self.ended: list[MigrationReport] = []

    def begin(self) -> Migration:
        """A migration with the usual settings."""
        plan = MigrationPlan("new.example", 9000, False, 30.0, 30.0)
        migration = Migration(plan, self.registry, self.clock, self.shut_port, self.ended.append)
        migration.start()
        return migration

    def shut_port(self) -> None:
        """The port is shut."""
        self.shut += 1

    def clients(self, count: int) -> list[Peer]:
        """As many clients with capabilities, all authenticated."""
        return [
            self.client("ack", key=DeviceKey("봇", f"device {number}")) for number in range(count)
        ]

    def notices(self, peer: Peer) -> list[Moving]:
        """The notices that a peer was sent."""
        return [frame for frame in peer.frames if isinstance(frame, Moving)]

    def arrive(self, peer: Peer) -> None:
        """The new server has greeted a client: it says so, and leaves."""
        peer.write(encode_migrated("new.example", 9000))
        peer.finish()

    def test_signed_notice(self) -> None:
        """A client can tell that the notice is ours, and until when it may be followed."""
        (client,) = self.clients(1)
        self.begin()
        self.run_for(2.0)
        (notice,) = self.notices(client)
        self.assertEqual(self.parts.signer.sign(notice.signed_text), notice.signature)
        self.assertTrue(30.0 <= notice.migrate_after <= 60.0)
        self.assertGreater(notice.expires / 1000, self.clock.seconds() + notice.migrate_after)

    def test_spread(self) -> None:
        """All are told within the spread, and not at once."""
        clients = self.clients(60)
        migration = self.begin()
        self.run_for(10.0)
        self.assertTrue(10 <= migration.report.told <= 30, migration.report)
        self.run_for(22.0)
        self.assertEqual([len(self.notices(client)) for client in clients], [1] * 60)

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

    def test_newcomers(self) -> None:
        """A client that comes meanwhile is sent on at once; an old phone is served."""
        self.clients(1)
        self.begin()
        late = self.client("ack", key=DeviceKey("봇", "late"))
        self.assertEqual([notice.migrate_after for notice in self.notices(late)], [0.0])
        self.assertTrue(late.finished)
        old = self.greeted(OLD)
        old.chat("여기 있어요")
        self.assertEqual(old.texts, ["여기 있어요"])

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

    def test_closes_by_name(self) -> None:
        """Old phones that are closed for it have that reason."""
        self.ready(OLD)
        self.begin()
        self.run_for(1.0)
        self.assertEqual(self.parts.metrics.closes.labels(CloseReason.MIGRATED).value, 1)
