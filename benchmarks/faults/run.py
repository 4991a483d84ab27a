"""
A run: every row, every kind of phone, all at the same time.
"""

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from twisted.internet.defer import Deferred, TimeoutError, ensureDeferred, gatherResults
from twisted.internet.task import LoopingCall, deferLater

from benchmarks.faults.hosts import PRESENT_PLACES, Host
from benchmarks.faults.network import ReactorIn, Relay, Way, World, why_no_relay
from benchmarks.faults.phones import PERIOD, LibraryPhone, OldPhone, Phone, Tally, tally
from benchmarks.faults.rows import ROWS, SHORT, STRANGER_ADDRESSES, Row
from benchmarks.faults.scripts import Jvm
from tests.phone_host import why_not

PRESENT, OLD, LIBRARY = "present", "ours, old phones", "ours, library"
SCRIPT: Final = "ours, bridge.js"
CONTESTANTS: Final = (PRESENT, OLD, LIBRARY, SCRIPT)
#: Phones in a lane of the script, and rows of more phones than this have no such lane: an engine
#: that interprets costs ten times what the others do, and the machine has to serve all.
SCRIPT_PHONES, MOST_SCRIPT_PHONES = 2, 10
#: Longest that the phones of such a lane may take until each has an answer, in seconds.
_WARM_SECONDS: Final = 30.0
#: So much before its fault a phone's lines count, in seconds.
LEAD_SECONDS: Final = 5.0
#: Between the faults of two rows, so that the machine is not asked for everything at once.
STAGGER_SECONDS: Final = 1.0
#: Time that phones have to leave, in seconds: the figures are there.
_STOP_SECONDS: Final = 10.0
#: Connections of a host that phones of many rows share.
_MANY_PLACES: Final = 1000


@dataclass(frozen=True)
class Scale:
    """
    How long it is watched, in seconds.

    @ivar settle: phones talk so long before the first fault.
    @ivar window: they talk on so long after the beginning of theirs.
    @ivar tail: the last lines may wait so long for their answers.
    @ivar bound: the run is given up after so long.
    """

    rows: Sequence[Row]
    settle: float
    window: float
    tail: float
    bound: float


FULL: Final = Scale(ROWS, settle=20.0, window=260.0, tail=32.0, bound=580.0)
QUICK: Final = Scale(
    tuple(row for row in ROWS if row.key in SHORT),
    settle=15.0,
    window=75.0,
    tail=10.0,
    bound=280.0,
)


@dataclass
class Lane:
    """Phones of one kind, their way to a server, and when its fault began and ended."""

    row: Row
    name: str
    way: Way
    phones: list[Phone]
    began_at: float = 0.0
    ended_at: float = 0.0
    quiet_at: float = 0.0
    tally: Tally | None = None


class Group:
    """The scene of a fault: a host, and the lanes that lead to it."""

    def __init__(self, reactor: Any, row: Row, host: Host) -> None:
        self.reactor = reactor
        self.row = row
        self.host = host
        self.lanes: list[Lane] = []
        self.strangers: Way | None = None

    @property
    def ways(self) -> list[Way]:
        """Those of the phones."""
        return [lane.way for lane in self.lanes]

    def begin(self) -> None:
        """The fault begins now."""
        for lane in self.lanes:
            lane.began_at = self.reactor.seconds()

    def end(self) -> None:
        """It is over now."""
        for lane in self.lanes:
            lane.ended_at = self.reactor.seconds()


class _Hiccups:
    """The longest time for which this process was held up: no figure is more exact."""

    def __init__(self, reactor: Any) -> None:
        self.longest = 0.0
        self._reactor = reactor
        self._last = reactor.seconds()
        self._looking = LoopingCall(self._look)
        self._looking.clock = reactor

    def start(self) -> None:
        self._last = self._reactor.seconds()
        self._looking.start(0.1, now=False)

    def stop(self) -> None:
        self._looking.stop()

    def _look(self) -> None:
        now = self._reactor.seconds()
        self.longest = max(self.longest, now - self._last - 0.1)
        self._last = now


class Run:
    """
    One run.

    @ivar remarks: facts that a reader of the figures has to know.
    """

    def __init__(self, world: World, reactor: Any, scale: Scale) -> None:
        self._world = world
        self._reactor = reactor
        self._scale = scale
        self._groups: list[Group] = []
        self._hosts: list[Host] = []
        self._number = 0
        self.remarks: list[str] = []
        self._contestants: Sequence[str] = CONTESTANTS
        if (why := why_not()) is not None:
            self.remarks.append(f"{SCRIPT} is left out: {why}")
            self._contestants = CONTESTANTS[:-1]
        self._jvms: list[Jvm] = []

    async def measure(self) -> list[Lane]:
        """@return: every lane, with its tally."""
        reactor, scale = self._reactor, self._scale
        self._build()
        _say(f"{len(self._hosts)} servers start")
        for host in self._hosts:
            host.start()
        for host in self._hosts:
            await host.listening()
        lanes = [lane for group in self._groups for lane in group.lanes]
        for number, lane in enumerate(lanes):
            self._add_phones(lane, self._group_of(lane).host, number)
        if self._jvms:
            _say(f"{len(self._jvms)} JVMs start")
        for jvm in self._jvms:
            await jvm.ready()
        count = sum(len(lane.phones) for lane in lanes)
        _say(f"{count} phones talk in {len(lanes)} lanes")
        for lane in sorted(lanes, key=lambda lane: lane.name is not SCRIPT):
            self._start_phones(lane)
            if lane.name is SCRIPT:
                await self._warmed_up(lane)
        hiccups = _Hiccups(reactor)
        hiccups.start()
        await self._sleep(scale.settle)
        _say(f"{len(scale.rows)} faults begin; {scale.window + scale.tail:.0f} s")
        places = {row.key: place for place, row in enumerate(scale.rows)}
        await gatherResults(
            [
                ensureDeferred(self._watch(group, STAGGER_SECONDS * places[group.row.key]))
                for group in self._groups
            ],
            consumeErrors=True,
        )
        hiccups.stop()
        self.remarks.insert(
            0, f"the phones' process was held up for {hiccups.longest:.1f} s at most"
        )
        stopped = gatherResults([phone.stop() for lane in lanes for phone in lane.phones])
        stopped.addTimeout(_STOP_SECONDS, reactor)
        with suppress(TimeoutError):
            await stopped
        return lanes

    # Before

    def _build(self) -> None:
        """Namespaces, cables, hosts."""
        shared: dict[bool, Host] = {}
        for row in self._scale.rows:
            if row.relay and (why := why_no_relay()) is not None:
                self.remarks.append(f"{row.title} is left out: {why}")
                continue
            groups: dict[bool, Group] = {}
            for name in self._contestants:
                if name is SCRIPT and row.phones > MOST_SCRIPT_PHONES:
                    continue
                ours = name is not PRESENT
                # 100 phones are as many as a host takes: those of another lane need one more.
                if ours not in groups or row.phones >= PRESENT_PLACES:
                    if row.own_host:
                        host = self._host(ours, PRESENT_PLACES, row.held and ours, row.settings)
                    else:
                        host = shared.get(ours) or self._host(ours, _MANY_PLACES)
                        shared[ours] = host
                    groups[ours] = Group(self._reactor, row, host)
                    self._groups.append(groups[ours])
                group = groups[ours]
                way = self._way(SCRIPT_PHONES if name is SCRIPT else row.phones, row.nat)
                group.host.add(way, self._relay() if row.relay else None)
                group.lanes.append(Lane(row, name, way, []))
            if row.strangers:
                for group in groups.values():
                    group.strangers = self._way(STRANGER_ADDRESSES, nat=False)
                    group.host.add(group.strangers)

    def _host(
        self, ours: bool, places: int, held: bool = False, settings: Sequence[str] = ()
    ) -> Host:
        host = Host(self._world, self._reactor, ours, places, held, settings)
        self._hosts.append(host)
        return host

    def _way(self, phones: int, nat: bool) -> Way:
        self._number += 1
        return Way(self._world, self._number, phones, nat)

    def _relay(self) -> Relay:
        relay = Relay(self._reactor)
        self._world.at_end(relay.close)
        return relay

    def _group_of(self, lane: Lane) -> Group:
        return next(group for group in self._groups if lane in group.lanes)

    def _add_phones(self, lane: Lane, host: Host, number: int) -> None:
        kind: Callable[..., Phone] = LibraryPhone if lane.name is LIBRARY else OldPhone
        if lane.name is SCRIPT:
            jvm = Jvm(self._world, self._reactor, lane.way)
            self._jvms.append(jvm)
            kind = jvm.phone
        for place, address in enumerate(lane.way.addresses):
            inside = ReactorIn(self._reactor, lane.way.phones, address)
            room = 1000 * (number + 1) + place
            lane.phones.append(
                kind(inside, lane.way.host, room, host.credentials, lane.row.long_lines)
            )

    def _start_phones(self, lane: Lane) -> None:
        """A hundred behind one address come one after the other, as they would in a day."""
        for place, phone in enumerate(lane.phones):
            spread = self._scale.settle / 2 if lane.row.phones > 10 else PERIOD
            phone.start(spread * place / len(lane.phones))

    async def _warmed_up(self, lane: Lane) -> None:
        """Wait until each phone has had an answer: engines that start disturb the others."""
        give_up = self._reactor.seconds() + _WARM_SECONDS
        while not all(phone.answers for phone in lane.phones):
            if self._reactor.seconds() > give_up:
                return
            await self._sleep(0.1)

    # Meanwhile

    async def _watch(self, group: Group, delay: float) -> None:
        """Watch a fault from its beginning until nothing more is waited for."""
        scale = self._scale
        await self._sleep(delay)
        for lane in group.lanes:
            mute = sum(not phone.answers for phone in lane.phones)
            if mute:
                self.remarks.append(
                    f"{lane.row.title}, {lane.name}: {mute} phones WERE MUTE before the fault"
                )
        begins_at = self._reactor.seconds()
        await gatherResults(
            [ensureDeferred(group.row.fault(group)), self._sleep(scale.window)], consumeErrors=True
        )
        for lane in group.lanes:
            lane.quiet_at = self._reactor.seconds()
            for phone in lane.phones:
                phone.be_quiet()
        await self._sleep(begins_at + scale.window + scale.tail - self._reactor.seconds())
        for lane in group.lanes:
            lane.tally = tally(
                lane.phones, LEAD_SECONDS, lane.began_at, lane.ended_at, lane.quiet_at
            )

    def _sleep(self, seconds: float) -> "Deferred[None]":
        return deferLater(self._reactor, max(0.0, seconds), lambda: None)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
