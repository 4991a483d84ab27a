"""
The faults, each a row of the table.
"""

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from twisted.internet.protocol import ClientFactory, connectionDone
from twisted.internet.protocol import Protocol as Connection
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from benchmarks.faults.hosts import Host
from benchmarks.faults.network import ReactorIn, Way
from benchmarks.faults.phones import PORT

#: Time for which a router answers everything by resets, in seconds: each phone says a line in it.
RESET_SECONDS: Final = 4.0
#: Strangers that connect and say nothing, their addresses, and the seconds that they have to come
#: before the phones must.
STRANGERS, STRANGER_ADDRESSES = 300, 60
STRANGERS_COME_SECONDS: Final = 5.0
_STRANGER_BACK_SECONDS: Final = 1.0
#: Connections a second that are begun and never completed, and for how many seconds.
HALF_OPEN_A_SECOND: Final = 100
HALF_OPEN_SECONDS: Final = 30.0
#: Answers that are under way at the moment of a fault have arrived after so long, in seconds.
_UNDER_WAY_SECONDS: Final = 1.0
#: Additional time that each packet takes, in seconds.
DELAY_SECONDS: Final = 2.0


class Scene(Protocol):
    """
    What a fault is made with: a server, and the ways to it.

    @ivar strangers: from where strangers come, if the row has any.
    """

    reactor: Any
    host: Host
    ways: Sequence[Way]
    strangers: Way | None

    def begin(self) -> None:
        """The fault begins now."""

    def end(self) -> None:
        """It is over now."""


Fault = Callable[[Any], Coroutine[Any, Any, None]]


@dataclass(frozen=True)
class Row:
    """
    A fault, and the targets.

    @ivar wanted: at most so many seconds until the first answer, with old phones, and with the
        library or the bridge script; L{None}: only half of the present system's time.
    @ivar phones: in each lane.
    @ivar own_host: true if the fault is the server's, which then has no other phones.
    @ivar nat: true if the phones are behind one address.
    @ivar last: true if the last phone counts, not the one in the middle.
    @ivar keeps_all: true if no line of an old phone may be lost.
    @ivar late: true if lines of an old phone come behind newer ones: its kernel hands them over, on
        the connection that we have finished, 25 s after its script is back on another.
    @ivar unnoticed: true if phones are to be answered all through the fault.
    @ivar phone_decides: true if the script and the kernel of an old phone alone decide when it is
        back and which lines it loses until then, whatever the server does.
    @ivar held: true if the port of our server stays open while that is away, as with a socket unit
        of systemd.
    @ivar settings: of our server.
    """

    key: str
    title: str
    fault: Fault
    seconds: float
    wanted: tuple[float | None, float | None] = (None, None)
    phones: int = 5
    own_host: bool = False
    nat: bool = False
    last: bool = False
    keeps_all: bool = False
    late: bool = False
    unnoticed: bool = False
    phone_decides: bool = False
    held: bool = False
    long_lines: bool = False
    relay: bool = False
    strangers: bool = False
    settings: tuple[str, ...] = ()


def _sleep(scene: Scene, seconds: float) -> Any:
    return deferLater(scene.reactor, seconds, lambda: None)


def _loses(seconds: float, *rules: str) -> Fault:
    """Packets vanish for some time."""

    async def fault(scene: Scene) -> None:
        scene.begin()
        for way in scene.ways:
            way.faults(*rules)
        await _sleep(scene, seconds)
        for way in scene.ways:
            way.faults()
        scene.end()

    return fault


def _forgets(rebinds: bool) -> Fault:
    async def fault(scene: Scene) -> None:
        scene.begin()
        for way in scene.ways:
            way.forget_flows(rebinds)
        await _sleep(scene, _UNDER_WAY_SECONDS)
        scene.end()

    return fault


def _delays(seconds: float) -> Fault:
    async def fault(scene: Scene) -> None:
        relays = [way.relay for way in scene.ways if way.relay is not None]
        scene.begin()
        for relay in relays:
            relay.delay = DELAY_SECONDS
        await _sleep(scene, seconds)
        for relay in relays:
            relay.delay = 0.0
        scene.end()

    return fault


def _killed(seconds: float) -> Fault:
    async def fault(scene: Scene) -> None:
        scene.begin()
        scene.host.kill()
        await _sleep(scene, seconds)
        scene.host.start()
        await scene.host.listening()
        scene.end()

    return fault


async def _restarted(scene: Scene) -> None:
    scene.begin()
    await scene.host.end()
    scene.host.start()
    await scene.host.listening()
    scene.end()


def _stopped(seconds: float) -> Fault:
    async def fault(scene: Scene) -> None:
        scene.begin()
        scene.host.stop()
        await _sleep(scene, seconds)
        scene.host.go_on()
        scene.end()

    return fault


def _reboots(seconds: float) -> Fault:
    async def fault(scene: Scene) -> None:
        scene.begin()
        for way in scene.ways:
            way.faults("drop")
        scene.host.vanish()
        await _sleep(scene, seconds)
        scene.host.boot()
        for way in scene.ways:
            way.faults()
        scene.host.start()
        await scene.host.listening()
        scene.end()

    return fault


async def _reset_all(scene: Scene) -> None:
    for way in scene.ways:
        way.resets(True)
    await _sleep(scene, RESET_SECONDS)
    for way in scene.ways:
        way.resets(False)


class _Stranger(ClientFactory):
    """Connects, says nothing, and comes again when it is closed."""

    noisy = False
    protocol = Connection

    def __init__(self, reactor: ReactorIn, host: str) -> None:
        self._reactor = reactor
        self._host = host

    def connect(self) -> None:
        self._reactor.connectTCP(self._host, PORT, self)

    def clientConnectionFailed(self, connector: Any, reason: Failure) -> None:
        self._reactor.callLater(_STRANGER_BACK_SECONDS, self.connect)

    def clientConnectionLost(self, connector: Any, reason: Failure = connectionDone) -> None:
        self._reactor.callLater(_STRANGER_BACK_SECONDS, self.connect)


async def _strangers(scene: Scene) -> None:
    """They stay to the end; phones must come anew while they are there."""
    way = scene.strangers
    assert way is not None
    scene.begin()
    for number in range(STRANGERS):
        address = way.addresses[number % len(way.addresses)]
        _Stranger(ReactorIn(scene.reactor, way.phones, address), way.host).connect()
    await _sleep(scene, STRANGERS_COME_SECONDS)
    await _reset_all(scene)
    scene.end()


async def _half_open(scene: Scene) -> None:
    """Have the server's answers to them vanish; phones must come anew meanwhile."""
    way = scene.strangers
    assert way is not None
    scene.begin()
    way.faults('iifname "wan" drop')
    begun: list[Any] = []

    def more() -> None:
        for number in range(HALF_OPEN_A_SECOND):
            address = way.addresses[number % len(way.addresses)]
            factory = ClientFactory()
            factory.noisy = False
            reactor = ReactorIn(scene.reactor, way.phones, address)
            begun.append(reactor.connectTCP(way.host, PORT, factory, 5.0))

    for second in range(int(HALF_OPEN_SECONDS)):
        scene.reactor.callLater(second, more)
    await _sleep(scene, STRANGERS_COME_SECONDS)
    await _reset_all(scene)
    scene.end()


_UP, _DOWN = 'iifname "lan" drop', 'iifname "wan" drop'
ROWS: Final = (
    Row("cut-5", "cut 5 s", _loses(5, "drop"), 5, keeps_all=True),
    Row("cut-30", "cut 30 s", _loses(30, "drop"), 30, (5, 4), keeps_all=True, late=True),
    Row("cut-120", "cut 120 s", _loses(120, "drop"), 120, (6, 3)),
    Row("up", "phone→server dead 120 s", _loses(120, _UP), 120, (6, 2)),
    Row("down", "server→phone dead 120 s", _loses(120, _DOWN), 120, (6, 5)),
    Row(
        "nat", "NAT forgets the flow", _forgets(False), 0, (None, 25), nat=True, phone_decides=True
    ),
    Row("rebind", "NAT gives another port", _forgets(True), 0, nat=True, phone_decides=True),
    Row(
        "mtu",
        "MTU hole 120 s",
        _loses(120, "ip length > 1280 drop"),
        120,
        keeps_all=True,
        unnoticed=True,
        long_lines=True,
    ),
    Row("loss-10", "loss 10 %, 60 s", _loses(60, "numgen random mod 100 < 10 drop"), 60),
    Row("loss-30", "loss 30 %, 60 s", _loses(60, "numgen random mod 100 < 30 drop"), 60),
    Row("delay", "delay 2 s each way, 60 s", _delays(60), 60, relay=True),
    Row("kill", "kill -9, started at once", _killed(0), 0, own_host=True),
    Row(
        "restart",
        "restart in order",
        _restarted,
        0,
        (None, 5),
        own_host=True,
        settings=("shutdown.reconnect_after=5",),
        phone_decides=True,
    ),
    Row("port", "server away 62 s, port held", _killed(62), 62, (3, 5), own_host=True, held=True),
    Row(
        "port-shut",
        "server away 62 s, port shut",
        _killed(62),
        62,
        (None, 5),
        own_host=True,
        phone_decides=True,
    ),
    Row("stop", "SIGSTOP 20 s", _stopped(20), 20, own_host=True),
    Row("reboot", "host away 30 s, reboots", _reboots(30), 30, own_host=True, phone_decides=True),
    Row(
        "crowd",
        "100 phones behind one address, server away 6 s",
        _killed(6),
        6,
        (8, 8),
        phones=100,
        own_host=True,
        nat=True,
        last=True,
    ),
    Row("strangers", "300 silent strangers, reset", _strangers, 9, own_host=True, strangers=True),
    Row("half-open", "half-open flood, reset", _half_open, 9, own_host=True, strangers=True),
)
#: In the short form.
SHORT: Final = ("cut-30", "nat", "rebind", "kill")
