"""The exceptions, the wire's error codes, and the reasons for which connections end."""

from enum import StrEnum


class ErrorCode(StrEnum):
    """The codes of C{error} frames.  Source: docs/protocol.md, "Errors"."""

    BAD_FRAME = "BAD_FRAME"
    FRAME_TOO_LARGE = "FRAME_TOO_LARGE"
    BAD_HANDSHAKE = "BAD_HANDSHAKE"
    AUTH_FAILED = "AUTH_FAILED"
    AUTH_REQUIRED = "AUTH_REQUIRED"
    NOT_APPROVED = "NOT_APPROVED"
    RATE_LIMITED = "RATE_LIMITED"
    BANNED = "BANNED"
    SERVER_FULL = "SERVER_FULL"
    SHUTTING_DOWN = "SHUTTING_DOWN"
    MESSAGE_TOO_LONG = "MESSAGE_TOO_LONG"
    TAKEN_OVER = "TAKEN_OVER"
    INTERNAL = "INTERNAL"


class CloseReason(StrEnum):
    """Why a connection ended: the same words in the log, the metrics and the API."""

    PEER_CLOSED = "peer closed"
    CONNECTION_LOST = "connection lost"
    HANDSHAKE_TIMEOUT = "handshake timeout"
    NO_HANDSHAKE = "no handshake"  # served by its messages' signatures, then closed
    AUTHENTICATION_TIMEOUT = "authentication timeout"
    AUTHENTICATION_FAILED = "authentication failed"
    PING_TIMEOUT = "ping timeout"
    TOO_SLOW = "too slow"
    UNACKNOWLEDGED = "unacknowledged"  # a phone's kernel acknowledged nothing of what was sent
    BAD_HANDSHAKE = "bad handshake"
    OTHER_DEVICE = "other device"  # a second handshake named another device
    FRAME_TOO_LARGE = "frame too large"
    BAD_STREAM = "bad stream"  # the compressed stream cannot be read on
    TOO_MANY_ERRORS = "too many errors"
    TAKEN_OVER = "taken over"
    SERVER_FULL = "server full"
    GAVE_WAY = "gave way"  # not authenticated, and the server was full
    RATE_LIMITED = "rate limited"
    BANNED = "banned"
    BAD_PROXY_HEADER = "bad proxy header"  # a balancer did not say who connects
    SHUTDOWN = "shutdown"
    MIGRATED = "migrated"
    INTERNAL = "internal error"


#: Codes after which nothing sensible can follow: the connection is closed.
_FATAL = frozenset(
    {
        ErrorCode.FRAME_TOO_LARGE,
        ErrorCode.BAD_HANDSHAKE,
        ErrorCode.BANNED,
        ErrorCode.SERVER_FULL,
        ErrorCode.TAKEN_OVER,
    }
)


class DomaekaError(Exception):
    """The root of all errors of this project."""


class ConfigError(DomaekaError):
    """A setting is wrong.  The text is one line that says which and why."""


class StoreError(DomaekaError):
    """The store could not do what was asked of it."""


class StorageFull(StoreError):
    """A bot wants to store more than it may.  The text says which bound that is."""


class BotError(DomaekaError):
    """
    A bot's code asked for something that cannot be done.

    The text is in the log at info, where chat must never be: it holds words of ours, numbers and
    the names of types, and nothing that a bot handed in.  All other errors of bots are logged
    without their texts.
    """


class AskTimeout(BotError):
    """
    Nobody has answered a question in its time, or another one has taken its place.

    @ivar is_replaced: True if another one has.
    """

    def __init__(self, is_replaced: bool = False) -> None:
        reason = "another question has taken its place" if is_replaced else "nobody has answered"
        super().__init__(reason)
        self.is_replaced = is_replaced


class NoServer(BotError):
    """No server serves the bot: it has not been started, or has ended, or reloaded the bot."""


class NoRoom(BotError):
    """No room has this channel id or title, among those that the bot's phones have heard."""


class AmbiguousRoom(BotError):
    """
    Several rooms have the title that a bot gave, those that an operator has refused apart.

    @ivar candidates: the channel id of each, or its title where no phone knows that.
    """

    def __init__(self, candidates: tuple[str, ...]) -> None:
        super().__init__(f"{len(candidates)} rooms have this title: give a channel id")
        self.candidates = candidates


class SendRefused(BotError):
    """
    A message that a bot sends unasked is not taken.

    @ivar why: the code: C{NO_PHONE}, C{NOT_APPROVED}, C{AMBIGUOUS}, C{QUEUE_FULL},
        C{SHUTTING_DOWN}, as over the API; or C{NOT_READY}: the store has not been read yet.
    """

    def __init__(self, why: str, text: str) -> None:
        super().__init__(text)
        self.why = why


class BotTypeError(BotError, TypeError):
    """A bot handed in something of a wrong type."""


class BotValueError(BotError, ValueError):
    """A bot handed in something that is too much, too little, or out of range."""


class WireError(DomaekaError):
    """
    The peer sent something that it may not send.

    The text is safe to send back: it quotes nothing that the peer sent.
    """

    def __init__(self, code: ErrorCode, text: str, fatal: bool = False) -> None:
        """
        @param code: sent to the peer.
        @param fatal: true if the connection ends, though not at other errors with this code.
        """
        super().__init__(text)
        self.code = code
        self.text = text
        #: True if the connection ends with this error.
        self.fatal = fatal or code in _FATAL
