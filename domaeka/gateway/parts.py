"""
What all connections use.
"""

from collections.abc import Callable, Sequence
from random import Random

from domaeka.config import Settings
from domaeka.gateway.verifier import Verifier
from domaeka.interfaces import ChatLog, Devices, Dispatcher, Rooms, Sessions
from domaeka.messages import FrameReader
from domaeka.metrics import Metrics
from domaeka.policies.auth import SignatureTable, Signer
from domaeka.policies.compression import pack_text
from domaeka.policies.limits import AddressLimits, Ban


class Parts:
    """What all connections use.  Wired in C{tap.py}."""

    def __init__(
        self,
        *,
        settings: Settings,
        signer: Signer,
        limits: AddressLimits,
        sessions: Sessions | None,
        devices: Devices,
        rooms: Rooms,
        chat_log: ChatLog | None,
        metrics: Metrics,
        seconds: Callable[[], float],
        random: Random,
        server_version: str,
        node: str,
    ) -> None:
        """
        @param sessions: L{None}: no session tokens are given.
        @param chat_log: L{None} where chat is not to be written.
        @param seconds: the time now, in seconds since 1970.
        @param node: what this server is called among others.
        """
        self._signatures = SignatureTable(settings.auth.clock_skew, seconds)
        self.sessions = sessions
        self.limits = limits
        #: Keeps bans that the sweep made.
        self.store_bans: Callable[[Sequence[Ban]], object] = lambda bans: None
        self.devices = devices
        self.rooms = rooms
        self.chat_log = chat_log
        self.metrics = metrics
        self.seconds = seconds
        self.random = random
        self.server_version = server_version
        self.node = node
        self.dispatcher: Dispatcher | None = None
        self.apply(settings, signer)

    def apply(self, settings: Settings, signer: Signer) -> None:
        """Take over settings, at the start or when they have changed."""
        self.settings = settings
        self.signer = signer
        self._signatures.window = settings.auth.clock_skew
        self.verifier = Verifier(settings.auth, signer, self._signatures, self.metrics)
        self.reader = FrameReader(settings.server.max_text_chars, settings.server.max_frame_bytes)
        #: What clients may ask for in their handshake.
        self.capabilities = frozenset(
            {"ack"}
            | ({"session"} if self.sessions is not None else set())
            | ({"gzip", "deflate"} if settings.compression.enabled else set())
        )

    def pack(self, raw: bytes, tail: bytes) -> bytes | None:
        """Pack the text of a frame, where that pays: a L{Pack<domaeka.messages.Pack>}."""
        compression = self.settings.compression
        packed = pack_text(raw, tail, compression.threshold_bytes, compression.min_saving)
        if packed is not None:
            self.metrics.compression_bytes.labels("plain").value += len(tail)
            self.metrics.compression_bytes.labels("wire").value += len(packed)
        return packed
