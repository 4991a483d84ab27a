"""Stand-ins for what bots are given, for the tests of bots."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from domaeka.bots.access import Holds
from domaeka.bots.api import Bot
from domaeka.bots.breakers import GaveWay
from domaeka.bots.dispatch import BotDispatcher
from domaeka.config import BotsSettings, BreakerSettings
from domaeka.interfaces import DeviceKey
from domaeka.policies.outbox import StatusListener
from domaeka.testing.host import MemoryClaims, MemoryHost, MemoryValues
from domaeka.testing.loop import VirtualBotLoop
from domaeka.wire import Chat, Dialect, Reply
from tests.clocks import WallClock

_T = TypeVar("_T")


class FakeReactor(Clock):
    """A clock that takes calls from threads, made at once."""

    def callFromThread(self, callable: Callable[..., Any], *args: Any) -> None:
        callable(*args)


class FakeThreads:
    """Threads that do nothing until they are told to."""

    def __init__(self) -> None:
        self.calls: deque[tuple[Deferred[Any], Callable[[], Any]]] = deque()
        self.closed = False

    def call(self, function: Callable[..., _T], *args: Any, **named: Any) -> "Deferred[_T]":
        result: Deferred[_T] = Deferred()
        self.calls.append((result, partial(function, *args, **named)))
        return result

    def work(self) -> None:
        """Make the oldest call."""
        result, call = self.calls.popleft()
        try:
            value = call()
        except Exception:
            result.errback()
        else:
            result.callback(value)

    def health(self) -> str | None:
        return None

    def close(self) -> "Deferred[None]":
        self.closed = True
        return succeed(None)


class FakeOrigin:
    """A phone that remembers what it was given."""

    def __init__(self, bot_name: str = "봇", device_id: str = "d1") -> None:
        self.key = DeviceKey(bot_name, device_id)
        self.replies: list[Reply] = []
        self.terms: list[tuple[float | None, StatusListener | None]] = []
        self.done: list[Chat] = []

    @property
    def texts(self) -> list[object]:
        """The replies' contents."""
        return [reply.content for reply in self.replies]

    def send(
        self, reply: Reply, ttl: float | None = None, on_status: StatusListener | None = None
    ) -> None:
        self.replies.append(reply)
        self.terms.append((ttl, on_status))

    def message_done(self, chat: Chat) -> None:
        self.done.append(chat)

    def describe(self) -> Mapping[str, str]:
        return {"주소": "192.0.2.1"}


def make_chat(
    text: str,
    channel_id: str | None = "1001",
    user_hash: str | None = "u1",
    sent_at: str | None = None,
    room: str = "방",
) -> Chat:
    """A message as it comes from a phone."""
    return Chat(
        dialect=Dialect.V33,
        room=room,
        channel_id=channel_id,
        sender="누구",
        text=text,
        is_group=True,
        log_id="77",
        user_hash=user_hash,
        is_mention=False,
        sent_at=sent_at,
        client_id=None,
        auth=None,
    )


class Served:
    """A dispatcher in virtual time, and the phone that speaks to it."""

    def __init__(
        self,
        bots: Iterable[Bot] = (),
        settings: BotsSettings | None = None,
        breaker: BreakerSettings | None = None,
        holds: Holds | None = None,
        *,
        now: float | None = None,
        values: MemoryValues | None = None,
        claims: MemoryClaims | None = None,
        gave_way: GaveWay = lambda pool, claimant, count: None,
    ) -> None:
        """
        @param now: by the wall clock.
        @param values: of a server before; so are C{claims}.
        """
        self.reactor = FakeReactor()
        self.threads = FakeThreads()
        self.origin = FakeOrigin()
        self.said: list[Chat] = []
        self.observed: list[tuple[str, float]] = []
        self.failures: list[str] = []
        self.busy = 0
        self.settings = settings or BotsSettings()
        self.breaker = breaker or BreakerSettings()
        self.wall = WallClock(self.reactor, 1_790_000_000.0)
        loop = VirtualBotLoop(self.reactor, self.threads)
        self.dispatcher = BotDispatcher(
            bots,
            self.reactor,
            self.threads,
            self.settings,
            self.breaker,
            loop=loop,
            observe=lambda command: lambda took: self.observed.append((command, took)),
            failed=self.failures.append,
            busy=self._count_busy,
            holds=holds,
            gave_way=gave_way,
        )
        self.host = MemoryHost(
            self.dispatcher,
            self.reactor,
            loop,
            self.wall,
            timeout=self.settings.timeout,
            values=values,
            claims=claims,
        )
        if now is not None:
            self.wall.step(now - self.wall())
        self.dispatcher.start()

    def _count_busy(self) -> None:
        self.busy += 1

    def say(self, text: str, **more: Any) -> Chat:
        """Somebody says C{text}."""
        chat = make_chat(text, **more)
        self.said.append(chat)
        self.dispatcher.submit(chat, self.origin)
        return chat

    def wait(self, seconds: int) -> None:
        """Let time pass, second by second."""
        self.reactor.pump([1.0] * seconds)


class Outside:
    """What commands wait for: each waits until it is let go."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.waiting: list[Deferred[Any]] = []

    def wait(self, name: str = "") -> "Deferred[Any]":
        """Begin to wait."""
        self.names.append(name)
        deferred: Deferred[Any] = Deferred()
        self.waiting.append(deferred)
        return deferred
