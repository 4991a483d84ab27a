"""Fair shares of connections: places, guests, those that close, and what is kept of them."""

from collections.abc import Callable
from itertools import count
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from domaeka.config import LimitsSettings
from domaeka.errors import CloseReason
from domaeka.gateway.directory.admission import (
    BRIEF_A_SECOND,
    CLOSING_OF_DEVICE,
    GUESTS_OVER_RATE,
    UNAPPROVED_OF_ADDRESS,
)
from domaeka.gateway.directory.registry import LEAST_AWAY
from domaeka.gateway.transport.connection import GatewayFactory
from domaeka.gateway.transport.proxy import PendingHeaders, ProxyProtocolFactory
from domaeka.interfaces import Approval, DeviceKey
from domaeka.metrics import Metrics
from domaeka.policies.limits import SUSPECT_SECONDS, AddressLimits, Admission
from domaeka.policies.networks import address_key, crowded
from domaeka.pools import Pool
from tests.clocks import WallClock
from tests.fairness import FairCase
from tests.gateway_case import KEY, GatewayCase, Peer

GREEDY = "198.51.100.7"
HOME = "203.0.113.5"
OTHER_SECRET = "another secret of enough bytes"


def key(number: int) -> DeviceKey:
    """One device of many."""
    return DeviceKey("봇", f"{number:016x}")


class CrowdCase(FairCase, GatewayCase):
    """An innocent phone beside a crowd."""

    def setUp(self) -> None:
        super().setUp()
        self.hosts = (f"10.{number >> 8}.{number & 255}.1" for number in count())

    def crowded(self, *settings: tuple[str, str]) -> None:
        """A server on which the innocent phone is connected, and approved."""
        self.serve(*settings)
        self.devices.known[KEY] = Approval.APPROVED
        self.innocent = self.ready()

    def at(self, host: str, device: DeviceKey = KEY, **more: Any) -> Peer:
        """Somebody connects from an address."""
        self.server.client_host = host
        return self.connect(device, **more)

    def unapproved(self, host: str, number: int) -> Peer:
        """Somebody who has the key, and whom no operator has approved."""
        self.devices.known[key(number)] = Approval.PENDING
        peer = self.at(host, key(number))
        peer.handshake()
        peer.pong()
        return peer

    def here(self, peers: list[Peer]) -> list[Peer]:
        """Those that are connected."""
        return [peer for peer in peers if not (peer.lost or peer.refused)]

    def proves(
        self, peer: Peer, naming: float, proving: float, meanwhile: Callable[[], object]
    ) -> bool:
        """
        A phone names itself, and then proves it, while others go on.

        @param naming: after so many seconds; C{proving} likewise.
        @return: whether it is served.
        """
        for seconds, said in ((naming, peer.handshake), (proving, peer.pong)):
            self.go_on(seconds, meanwhile)
            if peer.lost or peer.refused:
                return False
            said()
        peer.chat("말")
        return peer.texts == ["말"]

    def go_on(self, seconds: float, meanwhile: Callable[[], object]) -> None:
        """Let time pass, in which others go on."""
        end = self.clock.seconds() + seconds
        while self.clock.seconds() < end:
            self.run_for(0.02)
            meanwhile()

    def assert_innocent(self) -> None:
        """The innocent phone is connected as before, and gets its answer at once."""
        self.innocent.take()
        self.innocent.chat("하나")
        self.assertEqual((self.innocent.texts, self.innocent.lost), (["하나"], False))


class PlaceTests(CrowdCase):
    """Places, where not all can have one."""

    pools = (Pool.PLACES, Pool.GUESTS)

    def test_unapproved_of_an_address(self) -> None:
        """Devices that are not approved have ten connections of an address: the newest."""
        self.crowded()
        crowd = [self.unapproved(GREEDY, number) for number in range(1, 31)]
        self.assertEqual(self.here(crowd), crowd[-UNAPPROVED_OF_ADDRESS:])
        phones = []
        for number in range(31, 61):
            self.devices.known[key(number)] = Approval.APPROVED
            phones.append(self.at(GREEDY, key(number)))
            phones[-1].handshake()
            phones[-1].pong()
        self.assertEqual(self.here(phones), phones)
        self.assert_innocent()
        self.assert_gave_way(self.metrics, Pool.PLACES, 20)

    def test_unapproved_ones_hold_no_place(self) -> None:
        """A phone that is approved finds a place on a server that is full of others."""
        self.crowded(("server.max_connections", "21"))
        crowd = [
            self.unapproved(host, n) for n, host in zip(range(1, 21), self.hosts, strict=False)
        ]
        self.assertEqual(len(self.here(crowd)), 20)
        for number in range(100, 120):
            self.devices.known[key(number)] = Approval.APPROVED
            phone = self.at(GREEDY, key(number))
            self.assertTrue(self.proves(phone, 0.0, 0.0, lambda: None))
        self.assertEqual((self.here(crowd), self.directory.admission.phones), ([], 21))
        self.assert_innocent()

    def test_an_operator_decides(self) -> None:
        """A device that is approved keeps its place from then on; one that is blocked does not."""
        self.crowded(("server.max_connections", "3"))
        first, second = self.unapproved(GREEDY, 1), self.unapproved(GREEDY, 2)
        self.devices.set_approval(key(1), Approval.APPROVED)
        self.at(HOME)
        self.assertEqual((first.lost, second.lost), (False, True))
        self.devices.set_approval(key(1), Approval.BLOCKED)
        strangers = [self.at(next(self.hosts)) for _ in range(2)]
        self.assertEqual((first.lost, self.here(strangers)), (True, strangers))
        self.assert_innocent()

    def test_the_largest_holder_gives_way(self) -> None:
        """Strangers of an address that holds many places give way before one that came earlier."""
        self.crowded(("server.max_connections", "6"))
        early = self.at(HOME)
        greedy = [self.at(GREEDY) for _ in range(4)]
        late = self.at("203.0.113.6")
        self.assertEqual(self.here([early, *greedy, late]), [early, *greedy[1:], late])
        self.assert_innocent()

    def test_flood_of_strangers(self) -> None:
        """
        At a full server a phone has its time to name and to prove itself, however many strangers
        come: where phones are known, or once it has named itself.
        """
        self.crowded(("server.max_connections", "12"))
        self.expected[address_key(HOME)] = 1
        self.devices.known[key(1)] = self.devices.known[key(2)] = Approval.APPROVED

        def flood() -> None:
            self.at(next(self.hosts))

        for _ in range(20):
            flood()
        for host, number, naming in ((HOME, 1, 0.8), ("203.0.113.6", 2, 0.0)):
            self.assertTrue(self.proves(self.at(host, key(number)), naming, 2.5, flood), host)
        self.assert_innocent()
        self.assert_gave_way(self.metrics, Pool.PLACES, 100)

    def test_flood_on_a_server_full_of_phones(self) -> None:
        """A phone whose old connection is broken takes its place, however many strangers come."""
        self.crowded(("server.max_connections", "8"))
        phones = []
        for number in range(1, 8):
            self.devices.known[key(number)] = Approval.APPROVED
            phones.append(self.ready(key(number)))

        def flood() -> None:
            self.at(next(self.hosts))

        for _ in range(20):
            flood()
        self.expected[address_key(HOME)] = 1
        self.assertTrue(self.proves(self.at(HOME, key(1)), 0.8, 2.5, flood))
        self.assertEqual(self.here(phones), phones[1:])
        self.assert_innocent()
        self.assert_gave_way(self.metrics, Pool.GUESTS, 100)

    def test_strangers_at_a_full_server_do_not_linger(self) -> None:
        """Whoever has named no device that is known is told, and gone at once."""
        self.crowded(("server.max_connections", "1"))
        strangers = [self.at(next(self.hosts)) for _ in range(4)]
        for stranger in strangers:
            stranger.polite = False
        self.run_for(3.1)
        self.assertEqual([stranger.errors for stranger in strangers], [["SERVER_FULL"]] * 4)
        self.assertEqual(self.registry.connections, 1)

    def test_before_the_store_is_read(self) -> None:
        """As long as nobody knows who is approved, no phone gives way; then it is known."""
        self.serve(("server.max_connections", "3"))
        self.context.held.begin()
        self.devices.store_is_known = False
        phones = [self.ready(key(number)) for number in range(3)]
        self.at(GREEDY)
        self.assertEqual(self.here(phones), phones)
        self.devices.known |= {key(0): Approval.APPROVED, key(1): Approval.PENDING}
        self.devices.store_is_known = True
        self.directory.decisions.store_read()
        self.at(GREEDY)
        self.assertEqual(self.here(phones), [phones[0], phones[2]])


class NeighbourTests(CrowdCase):
    """Somebody behind the same router as phones that are known."""

    pools = (Pool.GUESTS,)

    def setUp(self) -> None:
        super().setUp()
        self.crowded(("ping.interval", "3600"), ("ping.initial_delay_min", "59"))
        self.expected[address_key(HOME)] = 2
        self.devices.known[key(1)] = Approval.APPROVED
        self.beside = self.at(HOME, key(2))
        self.beside.handshake()
        self.beside.pong()
        self.run_for(61.0)
        self.neighbours: list[Peer] = []

    def neighbour(self, said: bytes = b"") -> None:
        """He connects, and holds it."""
        peer = self.at(HOME)
        if said and not peer.refused:
            peer.write(said)
        self.neighbours.append(peer)

    def claimant(self) -> None:
        """He says that he is the phone."""
        peer = self.at(HOME, key(1), secret=OTHER_SECRET)
        peer.handshake()
        self.neighbours.append(peer)

    def refill(self, come: Callable[[], object]) -> None:
        """He has three more than his rate at any time."""
        while len(self.here(self.neighbours)) < GUESTS_OVER_RATE:
            come()

    def tries(self, meanwhile: Callable[[], object], naming: float = 0.2) -> int:
        """The phone comes back every 4 s, as the scripts do.  @return: its tries."""
        for number in range(1, 6):
            if self.proves(self.at(HOME, key(1)), naming, 0.2, meanwhile):
                return number
            self.go_on(4.0, meanwhile)
        return 0

    def exhaust(self, come: Callable[[], object]) -> None:
        """He uses up all attempts of the address, and is banned."""
        for _ in range(20):
            come()
        self.run_for(20.0)
        self.assertTrue(self.context.limits.bans_address(HOME))

    def test_over_the_rate(self) -> None:
        """The phone is heard though he has used up the attempts of its address, and at once."""
        for _ in range(12):
            self.neighbour()
        self.assertEqual(self.tries(lambda: self.neighbour()), 1)
        self.assert_innocent()
        self.assert_gave_way(self.metrics, Pool.GUESTS)

    def test_banned(self) -> None:
        """So it is while the address is banned, and the phone beside is not ended."""
        self.exhaust(lambda: self.neighbour(b"x"))
        self.assertEqual(self.tries(lambda: self.neighbour(b"x")), 1)
        self.assertFalse(self.beside.lost)
        self.assert_innocent()

    def test_fills_and_claims(self) -> None:
        """He has three connections at any time, and knows the phone's name: it is served soon."""
        for come in (self.neighbour, self.claimant):
            self.exhaust(lambda: self.neighbour(b"x"))
            self.assertIn(self.tries(lambda: self.refill(come)), (1, 2, 3))  # noqa: B023
            self.setUp()

    def test_clock_that_was_set(self) -> None:
        """A phone that set its clock meanwhile has the time that this takes to be seen."""
        self.exhaust(lambda: self.neighbour(b"x"))
        self.run_for(60.0)
        phone = self.at(HOME, key(1))
        phone.clock_offset = 200.0
        phone.chat("말")
        answered = 0
        for _ in range(100):
            if phone.pings > answered and not phone.lost:
                answered += 1
                phone.pong()
            self.run_for(0.1)
        self.assertEqual(phone.texts, ["말"])

    def test_three_at_a_time(self) -> None:
        """However many he opens, three are open at any time, and each for a second."""
        self.exhaust(lambda: self.neighbour(b"x"))
        for _ in range(50):
            self.neighbour()
        self.run_for(0.3)
        self.assertEqual(len(self.here(self.neighbours)), GUESTS_OVER_RATE)
        self.run_for(2.1)
        self.assertEqual(self.here(self.neighbours), [])

    def test_flood(self) -> None:
        """He costs the server so many connections a second at most; then the phone is heard."""
        self.exhaust(lambda: self.neighbour(b"x"))
        self.run_for(1.0)
        peers = []
        for _ in range(2 * BRIEF_A_SECOND):
            peers.append(self.connect())
            self.clock.rightNow -= 0.01  # all of them at once
        self.assertEqual(sum(not peer.refused for peer in peers), BRIEF_A_SECOND)
        self.assert_innocent()
        self.run_for(1.1)
        self.assertTrue(self.proves(self.at(HOME, key(1)), 0.0, 0.1, lambda: None))

    def test_what_is_not_known_has_no_claim(self) -> None:
        """Who names a device that is not approved is told, and gone, whatever he can sign."""
        self.exhaust(lambda: self.neighbour(b"x"))
        for approval in (Approval.PENDING, Approval.BLOCKED):
            self.devices.known[key(7)] = approval
            peer = self.at(HOME, key(7))
            peer.handshake()
            self.run_for(0.0)
            self.assertEqual((peer.errors, peer.lost), (["RATE_LIMITED"], True))

    def test_what_an_operator_has_shut_out(self) -> None:
        """Where an operator has banned nobody is heard; nor at an address that nobody knows."""
        ban = self.context.limits.ban("203.0.113.0/24", "trouble", made_by="operator")
        assert ban is not None
        self.assertTrue(self.at(HOME, key(1)).refused)
        self.context.limits.lift("203.0.113.0/24")
        self.assertFalse(self.at(HOME, key(1)).refused)
        for _ in range(10):
            self.at(GREEDY)
        self.assertTrue(self.at(GREEDY).refused)


class ClosingTests(CrowdCase):
    """Connections that close, and are not closed by their peers."""

    pools = (Pool.CLOSING,)

    def late(self) -> Peer:
        """The innocent phone: closed by us after its first message, which does not know it yet."""
        peer = self.at(HOME)
        peer.polite = False
        peer.chat("첫 말")
        self.run_for(2.0)
        self.assertTrue(peer.finished)
        return peer

    def assert_heard(self, peer: Peer) -> None:
        """What it says late is answered on its next connection."""
        peer.chat("늦은 말")
        back = self.at(HOME)
        back.handshake()
        back.pong()
        self.assertEqual(back.texts, ["늦은 말"])

    def test_one_device(self) -> None:
        """One that takes its own place over and over has two connections that close."""
        self.serve(("server.max_connections", "8"))
        late = self.late()
        for _ in range(40):
            peer = self.at(GREEDY, key(1))
            peer.polite = False
            peer.handshake(signed=True, capabilities=("ack",))
            self.assertLessEqual(self.registry.connections, 2 + CLOSING_OF_DEVICE)
        self.assert_heard(late)
        self.assert_gave_way(self.metrics, Pool.CLOSING, 30)

    def test_many_devices(self) -> None:
        """However many devices of an address close, those of others have their time."""
        self.serve(("server.max_connections", "8"))
        late = self.late()
        for number in range(1, 60):
            for _ in range(2):
                peer = self.at(GREEDY, key(number % 4 + 1))
                peer.polite = False
                peer.handshake(signed=True, capabilities=("ack",))
        self.assertLessEqual(self.registry.connections, 8 + 8)
        self.assert_heard(late)

    def test_strangers(self) -> None:
        """Strangers that close have their share, too: the first of the largest is cut off."""
        self.serve(("server.max_connections", "20"))
        stranger = self.at(HOME, secret=OTHER_SECRET)
        stranger.polite = False
        stranger.handshake(signed=True)
        for number in range(30):
            peer = self.at(f"198.51.100.{number % 5}", key(number), secret=OTHER_SECRET)
            peer.polite = False
            peer.handshake(signed=True)
        self.assertEqual((stranger.errors, stranger.lost), (["AUTH_FAILED"], False))
        self.assertLessEqual(self.registry.connections, 10)


class AwayTests(CrowdCase):
    """What is kept of devices that are gone."""

    pools = (Pool.AWAY,)

    def test_made_up_devices(self) -> None:
        """A holder of the key who makes names up pushes out his own: others are known as before."""
        self.crowded()
        self.innocent.drop()
        self.run_for(60.0)
        for number in range(1, LEAST_AWAY + 1):
            device = self.registry.get_or_create(key(number))
            device.address = GREEDY
            device.kept_until = self.context.steady.now + 7200.0
            self.devices.known[key(number)] = Approval.APPROVED
        self.run_for(1.0)
        self.assertEqual(len(self.registry.devices()), LEAST_AWAY)
        self.assertIsNotNone(self.registry.device(KEY))
        self.assert_gave_way(self.metrics, Pool.AWAY)

    def test_not_approved(self) -> None:
        """A device that is not approved goes before the many phones of one office."""
        for number in range(LEAST_AWAY + 1):
            device = self.registry.get_or_create(key(number))
            device.address = "198.51.100.1"
            device.kept_until = self.context.steady.now + 7200.0
            self.devices.known[key(number)] = Approval.APPROVED
        stranger = key(LEAST_AWAY)
        self.registry.get_or_create(stranger).address = GREEDY
        self.devices.known[stranger] = Approval.PENDING
        self.run_for(1.0)
        self.assertIsNone(self.registry.device(stranger))
        self.assertEqual(len(self.registry.devices()), LEAST_AWAY)
        self.assert_gave_way(self.metrics, Pool.AWAY)


class HistoryTests(CrowdCase):
    """The history of connections."""

    pools = (Pool.HISTORY,)

    def test_one_that_comes_and_goes(self) -> None:
        """A device that connects again and again pushes out its own history."""
        self.crowded()
        self.directory.history._max_closed = 10
        self.innocent.drop()
        for _ in range(40):
            self.ready(key(1)).drop()
        found = self.directory.history.page(None, 100)
        self.assertEqual([closed.key for _, closed in found], [key(1)] * 9 + [KEY])
        self.assertEqual(found[-1][1].reason, CloseReason.CONNECTION_LOST)
        self.assert_gave_way(self.metrics, Pool.HISTORY, 30)


class HeaderTests(CrowdCase):
    """Connections whose balancer has not said who they are."""

    pools = (Pool.HEADERS,)

    def test_one_of_many_balancers(self) -> None:
        """Whoever opens connections and announces nobody pushes out his own."""
        self.crowded(("server.max_connections", "20"))
        pending = PendingHeaders(self.context, self.directory.admission, self.clock)
        factory = ProxyProtocolFactory(pending, GatewayFactory(self.shared, wrapped=True))

        def arrive(host: str) -> tuple[Any, StringTransport]:
            balancer: Any = IPv4Address("TCP", host, 1)
            transport = StringTransport(peerAddress=balancer)
            protocol = factory.buildProtocol(balancer)
            protocol.makeConnection(transport)
            return protocol, transport

        protocol, transport = arrive(HOME)
        greedy = [arrive(GREEDY)[1] for _ in range(30)]
        self.assertEqual(sum(not each.disconnected for each in greedy), 9)
        protocol.dataReceived(b"PROXY TCP4 203.0.113.9 192.0.2.1 40000 9000\r\n")
        protocol.dataReceived(b'{"botName":"b","deviceID":"d","version":"3.2.1"}\n')
        self.assertIn(b"handshakeComplete", transport.value())
        self.assert_innocent()
        self.assert_gave_way(self.metrics, Pool.HEADERS, 21)
        pending.close()


class AddressTests(FairCase, SynchronousTestCase):
    """Tables of addresses, which somebody with very many of them fills."""

    pools = (Pool.ADDRESSES, Pool.BANS)

    def setUp(self) -> None:
        self.clock = Clock()
        self.metrics = Metrics()
        self.limits = AddressLimits(
            LimitsSettings(max_tracked_addresses=64),
            self.clock.seconds,
            WallClock(self.clock, 1.7e9),
            lambda key: int(key == address_key(HOME)),
            self.metrics.pools.gave_way,
        )

    def site(self, size: int = 1000) -> list[str]:
        """Addresses of a /48, each of which counts by itself."""
        return [f"2001:db8:1:{number:x}::1" for number in range(size)]

    def test_health_checks(self) -> None:
        """Those of others are no attempts, whoever else connects and says nothing."""
        for address in self.site():
            self.limits.admit(address)
            self.limits.ended_unused(address)
        for _ in range(30):
            self.assertIs(self.limits.admit("192.0.2.9"), Admission.ADMITTED)
            self.limits.ended_unused("192.0.2.9")

    def test_verified_phones(self) -> None:
        """The address of a phone that was verified is not banned, whoever else was."""
        self.limits.verified(HOME)
        self.limits.verified("192.0.2.9")
        for address in self.site():
            self.limits.verified(address)
        for address in (HOME, "192.0.2.9", "198.51.100.1"):
            for _ in range(5):
                self.limits.failed_signature(address)
        self.assertEqual(self.judged(), ["198.51.100.1/32"])
        self.assert_gave_way(self.metrics, Pool.ADDRESSES)

    def test_attempts(self) -> None:
        """Whoever has used up its attempts stays limited; where phones are known all is kept."""
        for _ in range(11):
            self.limits.admit("192.0.2.9")
        for _ in range(5):
            self.limits.admit(HOME)
        for address in self.site():
            self.assertIs(self.limits.admit(address), Admission.ADMITTED)
        self.assertIs(self.limits.admit("192.0.2.9"), Admission.RATE_LIMITED)
        found = [self.limits.admit(HOME) for _ in range(7)]
        self.assertEqual(found, [Admission.ADMITTED] * 6 + [Admission.RATE_LIMITED])

    def test_offenders(self) -> None:
        """A crowd of offenders does not shield one of another network from its ban."""
        self.offend("192.0.2.9", 4)
        for address in self.site():
            self.offend(address, 1)
        self.offend("192.0.2.9", 1)
        self.assertEqual(self.judged(), ["192.0.2.9/32"])

    def test_bans(self) -> None:
        """Where a site has filled the table an operator's ban takes the place of one of its own."""
        shut = self.limits.ban("198.51.100.0/24", "trouble", 600.0, made_by="operator")
        for address in self.site(63):
            self.offend(address, 5)
        self.judged()
        self.offend("192.0.2.9", 5)
        self.assertEqual(self.judged(), [])
        self.assert_gave_way(self.metrics, Pool.BANS)
        first = self.limits.first_to_end()
        assert first is not None and shut is not None
        self.assertEqual(first.made_by, "")
        self.limits.lift(first.network)
        self.assertIsNotNone(self.limits.ban("192.0.2.0/24", "trouble", made_by="operator"))

    def offend(self, address: str, times: int) -> None:
        for _ in range(times):
            self.limits.failed_signature(address)

    def judged(self) -> list[str]:
        """The networks that are banned once they had the time to prove themselves."""
        self.clock.advance(SUSPECT_SECONDS)
        for _ in self.limits.sweep():
            pass
        return [ban.network for _ in range(9) for ban in self.limits.judge()]


class CrowdedTests(SynchronousTestCase):
    """Who gives way in a full table."""

    def test_largest_first(self) -> None:
        """A part of all goes: of the largest sites, down to the same size, the oldest first."""
        large, small = [0x0A000000 + n for n in range(12)], [0x0B000000 + n for n in range(8)]
        one = [0x0C000000]
        found = crowded([*one, *small, *large], lambda key: 0, 3)
        self.assertEqual(found, [*small[:2], *large[:5]])
        self.assertEqual(crowded(one, lambda key: 0, 8), one)

    def test_known_ones(self) -> None:
        """Where devices may come back is forgotten only if there is nothing else."""
        keys = list(range(16))
        self.assertEqual(crowded(keys, lambda key: int(key < 8), 8), [8, 9])
        self.assertEqual(crowded(keys, lambda key: 1, 8), [0, 1])
