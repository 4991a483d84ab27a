"""Any peers, doing anything in any order, and what holds of the server after each step."""

from collections.abc import Callable
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.trial.unittest import SynchronousTestCase

from domaeka.gateway.peer import State
from domaeka.interfaces import Approval, DeviceKey
from domaeka.policies.networks import address_key
from tests.gateway_case import SECRET, GatewayCase, Peer

KEYS = [DeviceKey("봇", letter * 16) for letter in "abc"]
#: An address without limits, one where a phone is known, and one where none is.
HOSTS = ["192.0.2.1", "198.51.100.1", "203.0.113.1"]
MAX_CONNECTIONS = 2
#: Longer than anything waits for a device that is gone, in seconds: it may have been told to stay
#: away for two minutes.
LONG_SECONDS = 200.0


class _World(GatewayCase):
    """A gateway outside of any test."""

    def runTest(self) -> None:
        """There is none."""


_Rule = TypeVar("_Rule", bound=Callable[..., None])

#: Which of those that are connected; there are fewer, but for the last words.
WHO = st.integers(0, 3 * MAX_CONNECTIONS)


def somebody(**more: Any) -> Callable[[_Rule], _Rule]:
    """A rule for when there is a C{who}."""
    when = precondition(lambda self: any(not peer.lost for peer in self.all))
    return lambda function: when(rule(who=WHO, **more)(function))


class SessionMachine(RuleBasedStateMachine):
    """
    Peers with the right key, with a wrong one and with none.

    @ivar world: the gateway.
    @ivar all: every peer there was.
    @ivar trusted: those with the right key.
    @ivar right: the texts that were said under a right signature.
    """

    def __init__(self) -> None:
        super().__init__()
        self.world = _World()
        self.world.setUp()
        self.world.serve(("server.max_connections", str(MAX_CONNECTIONS)))
        self.all: list[Peer] = []
        self.trusted: set[Peer] = set()
        self.right: set[str] = set()
        self._said = 0
        self.refused = 0.0  # at accept
        self.world.expected[address_key(HOSTS[1])] = 1

    @property
    def attempts(self) -> float:
        """The attempts to connect that were counted."""
        return sum(self.world.counted(self.world.metrics.attempts).values())

    def peer(self, who: int) -> Peer:
        """One of those that are connected."""
        there = [peer for peer in self.all if not peer.lost]
        return there[who % len(there)]

    def text(self, signer: Peer | None) -> str:
        """Something that nobody has said, to be signed by somebody."""
        self._said += 1
        text = f"말 {self._said}"
        if signer in self.trusted:
            self.right.add(text)
        return text

    @rule(
        key=st.sampled_from(KEYS),
        host=st.sampled_from(HOSTS),
        right=st.booleans() | st.just(True),
        begins=st.sampled_from(["", "bare", "signed", "chat", "pong"]),
    )
    def connect(self, key: DeviceKey, host: str, right: bool, begins: str) -> None:
        """Somebody connects, with the key or without, and begins to talk."""
        self.world.server.client_host = host
        secret = SECRET if right else "another secret of enough bytes"
        before = self.attempts
        peer = self.world.connect(key, secret=secret)
        if peer.refused:
            self.refused += self.attempts - before
            return
        self.all.append(peer)
        if right:
            self.trusted.add(peer)
        if begins in ("bare", "pong"):
            peer.handshake(bare=begins == "bare")
        if begins == "signed":
            peer.handshake(signed=True, capabilities=("ack",))
        if begins == "chat":
            peer.chat(self.text(peer))
        if begins == "pong":
            peer.pong()

    @somebody(kind=st.sampled_from(["bare", "enveloped", "signed", "other"]))
    def handshake(self, who: int, kind: str) -> None:
        """One says who it is, again, or that it is another."""
        peer = self.peer(who)
        if kind == "other":
            peer.write(b'{"botName":"x","deviceID":"y","version":"1"}\n')
        else:
            peer.handshake(bare=kind == "bare", signed=kind == "signed")

    @somebody(signed=st.booleans(), times=st.integers(1, 2))
    def chat(self, who: int, signed: bool, times: int) -> None:
        """Somebody writes; perhaps the line comes twice."""
        peer = self.peer(who)
        line = peer.line(self.text(peer if signed else None), signed=signed)
        peer.write(line * times)

    @somebody(other=WHO)
    def replay(self, who: int, other: int) -> None:
        """What one has signed is said by another."""
        peer, thief = self.peer(who), self.peer(other)
        line = peer.line(self.text(peer))
        peer.write(line)
        thief.write(line)

    @somebody()
    def pong(self, who: int) -> None:
        """One answers a ping."""
        self.peer(who).pong()

    @somebody(number=st.integers(-1, 9))
    def acknowledge(self, who: int, number: int) -> None:
        """One has something, or says so."""
        self.peer(who).ack(number)

    @somebody(data=st.binary(max_size=20) | st.sampled_from([b"{}\n", b'{"event":1}\n']))
    def garbage(self, who: int, data: bytes) -> None:
        """One says something else."""
        self.peer(who).write(data)

    @somebody(kind=st.sampled_from(["finish", "drop", "stop_reading", "read_on"]))
    def line(self, who: int, kind: str) -> None:
        """Something happens to a connection."""
        getattr(self.peer(who), kind)()

    @somebody()
    def stay(self, who: int) -> None:
        """One does not close when the server does."""
        self.peer(who).polite = False

    @rule(seconds=st.sampled_from([0.01, 0.6, 1.0, 4.0, 12.0, 70.0]))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.world.run_for(seconds)

    @rule(hold=st.booleans())
    def bots(self, hold: bool) -> None:
        """Bots begin to take their time, or answer everything."""
        self.world.bots.hold = hold
        if not hold:
            self.world.bots.release()
            self.world.run_for(0.0)

    @rule(key=st.sampled_from(KEYS), approval=st.sampled_from(Approval))
    def decide(self, key: DeviceKey, approval: Approval) -> None:
        """An operator decides."""
        self.world.devices.set_approval(key, approval)
        self.world.run_for(0.0)

    @precondition(lambda self: not self.world.drain.running)
    @rule()
    def begin_drain(self) -> None:
        """The server is to be emptied."""
        self.world.server.open = False
        self.world.drain.begin("test")
        self.world.run_for(0.0)

    @precondition(lambda self: self.world.drain.running)
    @rule()
    def call_off_drain(self) -> None:
        """It is not."""
        self.world.drain.call_off()
        self.world.server.open = True

    # What holds

    @invariant()
    def serves_who_is_verified(self) -> None:
        """Nothing reaches a bot, or the list of devices, but under a right signature."""
        said = [chat.text for chat, _ in self.world.bots.submitted]
        assert set(said) <= self.right, said
        assert len(said) == len(set(said)), "twice"
        assert self.world.devices.entered.keys() <= set(KEYS)

    @invariant()
    def one_connection_a_device(self) -> None:
        """A device has one connection at most, and only one that has proven who it is."""
        for session in self.world.conversations():
            device = session._device
            if device is not None and not session.peer.closing:
                assert device.connection is session and device.key == session.peer.key
            if not session.peer.closing:
                proven = session.peer.state in (State.KNOWN, State.READY)
                assert session.peer.authenticated is proven

    @invariant()
    def counts_agree(self) -> None:
        """The counts are those of what there is, and within the limit."""
        registry = self.world.registry
        sessions = self.world.conversations()
        admission = self.world.directory.admission
        guests = admission._guests.keys()
        assert all(guest in sessions and not guest.peer.authenticated for guest in guests)
        seated = [each for each in sessions if not each.peer.closing and each not in guests]
        assert (registry.connections, admission.taken) == (len(sessions), len(seated))
        assert len(seated) <= MAX_CONNECTIONS
        strangers = {session.peer.number for session in seated if session._device is None}
        assert strangers == {stranger.peer.number for stranger in admission.strangers()}
        assert all(session.peer.reason is not None for session in sessions if session.peer.closing)
        waits = sum(device.outbox.bytes for device in registry.devices())
        assert self.world.context.budget.used == waits
        ended = sum(self.world.reasons.values())
        uncounted = sum(not visit.counted for visit in admission._guests.values())
        assert ended + len(sessions) - uncounted + self.refused == self.attempts

    @invariant()
    def shares_agree(self) -> None:
        """Whoever is in the books of admission is there, and in the right ones."""
        admission = self.world.directory.admission
        sessions = self.world.conversations()
        closing = {each for each in sessions if each.peer.closing}
        ranks = [each for rank in admission._ranks for each in rank]
        assert len(ranks) == len(admission._guests) and set(ranks) == admission._guests.keys()
        assert set(admission._over_rate) <= set(ranks)
        assert len(admission._leaving) + len(ranks) <= admission._max_guests
        assert {*admission._leaving, *admission._late} <= closing
        assert set(admission._late) == set(admission._late_of_device)
        refused = {
            each
            for each in {*sessions} - closing
            if each._device is not None and not each._device.approved
        }
        assert refused == set(admission._unapproved)
        seated = {*sessions} - closing - {*ranks}
        strangers = {each for each in seated if each._device is None}
        assert strangers | refused == set(admission._yielding)

    @invariant()
    def no_mistakes(self) -> None:
        """Nothing of ours goes wrong."""
        assert self.world.metrics.errors.labels("INTERNAL").value == 0

    def teardown(self) -> None:
        """When all are gone, nothing is left."""
        world = self.world
        world.bots.hold = False
        world.bots.release()
        world.drain.call_off()
        for peer in self.all:
            if not peer.lost:
                peer.drop()
        world.run_for(LONG_SECONDS)
        assert world.registry.connections == 0
        assert not any(device.outbox.bytes or device.pending for device in world.registry.devices())
        world.directory.sweep.stop()
        assert not world.clock.getDelayedCalls()


class SessionMachineTests(SynchronousTestCase):
    """Tests for all that talks to phones, together."""

    def test_any_order(self) -> None:
        """Whatever peers do, and in whatever order, the promises hold after each step."""
        run_state_machine_as_test(
            SessionMachine,
            settings=settings(
                max_examples=25,
                stateful_step_count=40,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
