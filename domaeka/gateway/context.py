"""The context that all modules of the gateway use."""

from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Any, Final, cast

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from domaeka.config import Settings
from domaeka.gateway.authentication import Authentication
from domaeka.gateway.doubts import Doubts
from domaeka.gateway.events import Events
from domaeka.gateway.held import HeldChat
from domaeka.gateway.journal import Journal
from domaeka.gateway.serving import Serving
from domaeka.interfaces import Ban, ChatLog, Devices, Dispatcher, Rooms, Sessions
from domaeka.metrics import Metrics
from domaeka.policies.auth import Signer
from domaeka.policies.budget import Budget
from domaeka.policies.limits import AddressLimits
from domaeka.policies.liveness import SteadyTime
from domaeka.pools import Pool
from domaeka.rates import MinuteRates
from domaeka.wire import Chat, FrameReader, pack_text

#: Period of the sweep, in seconds, and so the most by which a deadline is missed.
SWEEP_SECONDS: Final = 1.0
#: Lines of devices that are not approved that the chat log takes in a minute: of an address, and of
#: all together.  Source: docs/security.md, "Shares".
UNAPPROVED_LINES: Final = 20
MAX_UNAPPROVED_LINES: Final = 200


class Context:
    """
    Clocks, settings and stores: made once, and complete.

    @ivar steady: a time in which delays of the process do not count; the sweep advances it.
    @ivar budget: the memory that messages to phones share.
    @ivar doubts: the memory of lines that wait for a proof.
    @ivar held: chat that waits for the store to be read.
    """

    def __init__(
        self,
        *,
        reactor: IReactorTime,
        seconds: Callable[[], float] | None = None,
        wall: Callable[[], float],
        settings: Settings,
        signer: Signer,
        authentication: Authentication,
        limits: AddressLimits,
        sessions: Sessions | None,
        devices: Devices,
        rooms: Rooms,
        chat_log: ChatLog | None,
        dispatcher: Dispatcher,
        metrics: Metrics,
        random: Random,
        server_version: str,
        node: str,
        journal: Journal | None = None,
        store_bans: Callable[[Sequence[Ban]], object] = lambda bans: None,
        lift_command: Callable[[str], str] = "domaeka bans lift {}".format,
    ) -> None:
        """
        @param seconds: the time now, in seconds, which never steps; by default the reactor's.
        @param wall: the wall clock, in seconds since 1970: for dates alone.
        @param sessions: L{None}: no session tokens are given.
        @param chat_log: L{None}: chat is not written down.
        @param node: the name of this server among others.
        @param journal: L{None}: what was taken does not outlive a crash.
        @param store_bans: stores bans that the sweep made.
        @param lift_command: the shell command that lifts the ban of a network.
        """
        self._reactor = reactor
        self.seconds: Callable[[], float] = seconds or cast(Any, reactor).seconds
        self.wall = wall
        self.steady = SteadyTime(SWEEP_SECONDS, self.seconds)
        self.authentication = authentication
        authentication.lead_of = devices.clock_lead
        self.sessions = sessions
        self.limits = limits
        self.store_bans = store_bans
        self.lift_command = lift_command
        self.devices = devices
        self.rooms = rooms
        self.chat_log = chat_log
        self.dispatcher = dispatcher
        self.metrics = metrics
        self.random = random
        self.server_version = server_version
        self.node = node
        self.journal = journal
        self.events = Events()
        self.serving = Serving()
        gave_way = metrics.pools.gave_way
        self.held = HeldChat(metrics.held_messages_dropped.inc, partial(gave_way, Pool.HELD_CHAT))
        self.doubts = Doubts(partial(gave_way, Pool.DOUBTFUL_LINES))
        self.budget = Budget(
            settings.queue.total_bytes,
            partial(gave_way, Pool.OUTBOX),
            partial(gave_way, Pool.OUTBOXES),
            partial(gave_way, Pool.REPORTS),
        )
        self.unapproved_lines = MinuteRates[int | str](UNAPPROVED_LINES, MAX_UNAPPROVED_LINES)
        self._epoch = f"{random.getrandbits(64):016x}"
        self._last_epoch = 0
        self.apply(settings, signer)

    def apply(self, settings: Settings, signer: Signer) -> None:
        """Apply settings, at the start or when they have changed."""
        self.settings = settings
        self.signer = signer
        self.authentication.apply(settings.auth, signer)
        self.reader = FrameReader(settings.server.max_text_chars, settings.server.max_frame_bytes)
        #: Capabilities that clients may ask for in their handshake.
        self.capabilities = frozenset(
            {"ack", "delivery", "probe"}
            | ({"session"} if self.sessions is not None else set())
            | ({"gzip", "deflate"} if settings.compression.enabled else set())
        )

    def call_soon(self, function: Callable[[], object]) -> None:
        """Call C{function} in another turn of the reactor."""
        self.call_later(0, function)

    def call_later(self, seconds: float, function: Callable[[], object]) -> IDelayedCall:
        """
        Call C{function} in so many seconds, and not in this turn of the reactor.

        @return: cancels the call, or moves it.
        """
        return self._reactor.callLater(seconds, function)  # type: ignore[arg-type]  # IReactorTime is mistyped

    def epoch_of(self, number: int) -> str:
        """The epoch that a connection gets before it has authenticated."""
        return f"{self._epoch}.{number}"

    def new_epoch(self) -> str:
        """An epoch for the numbers of a new outbox."""
        self._last_epoch += 1
        return f"{self._epoch}-{self._last_epoch}"

    def pack(self, raw: bytes, tail: bytes) -> bytes | None:
        """Pack the text of a frame, where that pays: a L{Pack<domaeka.wire.Pack>}."""
        compression = self.settings.compression
        packed = pack_text(raw, tail, compression.threshold_bytes, compression.min_saving)
        if packed is not None:
            self.metrics.compression_bytes.labels("plain").value += len(tail)
            self.metrics.compression_bytes.labels("wire").value += len(packed)
        return packed

    def unpack(self, chat: Chat) -> int:
        """
        Inflate the text of a message.

        @return: its size, in bytes.
        @raise WireError: it cannot be inflated, or is too long.
        """
        assert chat.packed is not None
        stages = self.metrics.compression_bytes
        packed_bytes = len(chat.packed)
        self.reader.inflate(chat)
        stages.labels("wire").value += packed_bytes
        size = len(chat.text.encode())
        stages.labels("plain").value += size
        return size
