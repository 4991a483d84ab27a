"""Library clients that talk all the time, and what becomes of what they say."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.task import LoopingCall
from twisted.trial.unittest import TestCase

from domaeka.client import (
    Client,
    ClientEvent,
    Connected,
    Credentials,
    Greeting,
    Identity,
    MigrationNotice,
    Reply,
    Said,
    Server,
    ShutdownNotice,
)
from tests.integration.support import HOST, PATIENCE_SECONDS, ServerProcess, sleep

reactor: Any = _reactor

BOT = "가게봇"
#: How long what a talker says may wait, in seconds.
TTL_SECONDS = 300.0
#: At most so many of what a talker says wait for an answer at a time: fewer than a room may have.
WAITING = 50
#: How often a condition is looked at, in seconds.
_POLL_SECONDS = 0.05


class Talker:
    """
    A library client in a room of its own.  Each tenth thing that it says takes a while to answer.

    @ivar said: what must be answered, each once.
    @ivar replies: the answers, as they came.
    @ivar events: what else happened, and when.
    """

    def __init__(self, number: int, servers: Sequence[ServerProcess], period: float) -> None:
        """
        @param servers: in the client's order of preference; their secrets are the same.
        @param period: between two things that it says, in seconds.
        """
        self.said: list[str] = []
        self.replies: list[str] = []
        self.events: list[tuple[float, ClientEvent]] = []
        self._number = number
        secrets = servers[0].secrets()
        self.client = Client(
            reactor,
            [Server(HOST, server.port) for server in servers],
            Identity(bot_name=BOT, device_id=f"talker-{number}"),
            Credentials(secrets["secret_key"], secrets["salt"]),
            self._replied,
            self._happened,
        )
        self._talk = LoopingCall(self._say)
        self._period = period

    def _replied(self, reply: Reply) -> None:
        self.replies.append(str(reply.content))

    def _happened(self, event: ClientEvent) -> None:
        self.events.append((reactor.seconds(), event))

    def _say(self) -> None:
        number = len(self.said)
        if number - len(self.replies) >= WAITING:
            return  # the server is away for long
        text = f"{self._number}.{number}"
        self.said.append(text)
        command = f"# slow 0.5 {text}" if self._is_slow(number) else f"# echo {text}"
        said = Said(
            room=f"방 {self._number}", channel_id=str(self._number + 1), sender="나", text=command
        )
        self.client.say(said, TTL_SECONDS)

    def _is_slow(self, number: int) -> bool:
        """Whether something takes a while; not the same for all at the same time."""
        return (number + self._number) % 10 == 5

    def start(self, delay: float) -> None:
        """Connect, and begin to talk some seconds later."""
        self.client.startService()
        reactor.callLater(delay, self._talk.start, self._period)

    async def stop(self) -> None:
        """Say no more, and leave."""
        self.be_quiet()
        await self.client.stopService()

    def be_quiet(self) -> None:
        """Say no more."""
        if self._talk.running:
            self._talk.stop()

    def seen(self, kind: type) -> list[Any]:
        """The events of a kind."""
        return [event for _, event in self.events if isinstance(event, kind)]

    @property
    def troubles(self) -> list[str]:
        """What was lost, what was doubled, and which answers that take no while changed places."""
        lost = Counter(self.said) - Counter(self.replies)
        doubled = Counter(self.replies) - Counter(self.said)
        quick = [text for text in self.replies if not self._is_slow(_place(text))]
        in_order = sorted(quick, key=_place)
        moved = [text for text, right in zip(quick, in_order, strict=True) if text != right]
        return [
            *(f"lost {text}" for text in lost),
            *(f"doubled {text}" for text in doubled),
            *(f"out of place {text}" for text in moved),
        ]


def _place(text: str) -> int:
    return int(text.partition(".")[2])


class Crowd:
    """Many talkers."""

    def __init__(
        self,
        test: TestCase,
        servers: Sequence[ServerProcess],
        count: int,
        period: float = 0.5,
        first: int = 0,
    ) -> None:
        """
        They come and talk, all at other moments, until the test ends.

        @param first: the number of the first of them.
        """
        self._test = test
        self.talkers = [Talker(first + number, servers, period) for number in range(count)]
        for number, talker in enumerate(self.talkers):
            talker.start(period * number / count)
            test.addCleanup(talker.stop)

    async def until(self, condition: Any, patience: float = PATIENCE_SECONDS) -> None:
        """Wait until something holds for all of them."""
        deadline = reactor.seconds() + patience
        while late := [talker for talker in self.talkers if not condition(talker)]:
            if reactor.seconds() > deadline:
                raise AssertionError(f"{len(late)} are late: {late[0].events[-5:]}")
            await sleep(_POLL_SECONDS)

    async def greeted(self, server: ServerProcess | None = None) -> None:
        """Wait until all are greeted, by a server."""

        def here(talker: Talker) -> bool:
            client = talker.client
            return client.greeted and (server is None or client.server.port == server.port)

        await self.until(here)

    async def finish(self, patience: float = PATIENCE_SECONDS) -> None:
        """Have them say no more; all that they said must have been answered once."""
        for talker in self.talkers:
            talker.be_quiet()
        await self.until(lambda talker: len(talker.replies) >= len(talker.said), patience)
        await sleep(0.5)  # for what comes twice
        for talker in self.talkers:
            self._test.assertEqual(talker.troubles, [])

    def arrivals(self, server: ServerProcess) -> list[float]:
        """When they connected to a server."""
        return sorted(
            time
            for talker in self.talkers
            for time, event in talker.events
            if isinstance(event, Connected) and event.server.port == server.port
        )

    def departures(self) -> list[float]:
        """Until when each may follow the notice to go: so far apart were they told to go."""
        return [
            notice.expires / 1000
            for talker in self.talkers
            for notice in talker.seen(MigrationNotice)
        ]

    def greetings(self, server: ServerProcess) -> list[Greeting]:
        """With what that server greeted each that it greeted last."""
        return [talker.seen(Greeting)[-1] for talker in self.talkers]

    def waits(self) -> list[float]:
        """After how long each was told to come back, when it was told last."""
        return [talker.seen(ShutdownNotice)[-1].reconnect_after for talker in self.talkers]


def most_within(times: Iterable[float], seconds: float) -> int:
    """How many of C{times} at most lie within any stretch of C{seconds}."""
    ordered = sorted(times)
    most = first = 0
    for last, time in enumerate(ordered):
        while time - ordered[first] > seconds:
            first += 1
        most = max(most, last - first + 1)
    return most
