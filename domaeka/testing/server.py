"""
A stand-in for a server, for tests of clients.

It behaves as docs/protocol.md says a server does, with every capability or with none, and does
what the test says besides.  L{FakeConversation} is the conversation alone, bytes in and bytes out;
L{FakeServer} is also a factory for L{domaeka.testing.VirtualServer}, C{iosim} or a real port.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, Final

from twisted.internet import interfaces, protocol
from twisted.python.failure import Failure

from domaeka.errors import ErrorCode, WireError
from domaeka.messages import (
    Ack,
    Chat,
    Dialect,
    FrameReader,
    Handshake,
    Media,
    Migrated,
    Pong,
    Reply,
    encode_ack,
    encode_error,
    encode_frame,
    encode_handshake_complete,
    encode_ping,
    encode_reply,
    encode_shutdown,
    timestamp_text,
)
from domaeka.policies.auth import Seen, SignatureTable, Signer
from domaeka.policies.compression import Deflater, Inflater, pack_text
from domaeka.wire import LineDecoder

#: All that a server can do.
ALL: Final = ("gzip", "deflate", "session", "ack")


class FakeDevice:
    """What a server keeps of one device, connected or not."""

    def __init__(self) -> None:
        """A device that has never been seen."""
        self.epoch = os.urandom(4).hex()
        self.next_number = 1
        self.unacknowledged: dict[int, Reply] = {}
        self.waiting: list[Reply] = []
        self.client_ids: set[str] = set()
        self.tokens: list[str] = []


class FakeStore:
    """What outlives a server, and is shared by all that use it."""

    def __init__(self) -> None:
        """Nothing is known."""
        self.devices: dict[tuple[str, str], FakeDevice] = {}

    def device(self, key: tuple[str, str]) -> FakeDevice:
        """That of C{key}, new if need be."""
        return self.devices.setdefault(key, FakeDevice())


class FakeServer(protocol.Factory):
    """
    One server process.

    @ivar chats: what was taken, in order, each once.
    @ivar handshakes: what clients said of themselves, in order.
    @ivar migrated: where clients said that they went.
    @ivar conversations: those that are alive, oldest first.
    """

    noisy = False

    def __init__(
        self,
        seconds: Callable[[], float],
        secret_key: str,
        salt: str,
        *,
        capabilities: Sequence[str] = ALL,
        answer: Callable[[Chat], str | Media | None] | None = None,
        store: FakeStore | None = None,
        approved: bool = True,
        ping_interval: float = 30.0,
    ) -> None:
        """
        @param capabilities: what it takes of what is offered; none: it knows nothing of them.
        @param answer: what a message is answered with; by default with itself.
        @param store: shared with other servers, or with the one before a restart.
        @param approved: what clients are told.
        @param ping_interval: what clients are told, in seconds; pings go out by L{ping} only.
        """
        self.seconds = seconds
        self.signer = Signer([secret_key], salt, 300.0, seconds)
        self.signatures = SignatureTable(300.0, seconds)
        self.capabilities = frozenset(capabilities)
        self.answer = answer or (lambda chat: chat.text)
        self.store = store or FakeStore()
        self.approved = approved
        self.ping_interval = ping_interval
        self.greet = True  # whether handshakes are answered
        self.welcomes = True  # whether what they are answered with is a success
        self.lets_go = True  # whether a client that has moved is closed at once
        self.refuse_with: ErrorCode | None = None  # what each handshake is refused with
        self.chats: list[Chat] = []
        self.handshakes: list[Handshake] = []
        self.migrated: list[Migrated] = []
        self.conversations: list[FakeConversation] = []
        self._count = 0

    def conversation(self) -> "FakeConversation":
        """A client has connected."""
        self._count += 1
        return FakeConversation(self, self._count)

    # IProtocolFactory

    def buildProtocol(self, addr: interfaces.IAddress | None) -> "FakeServerProtocol":
        """One connection."""
        return FakeServerProtocol(self.conversation())

    # What the test says

    def send(self, content: str | Media, room: str = "방", channel_id: str | None = None) -> None:
        """Something for a room, to every device that has been seen."""
        for (bot_name, _), device in self.store.devices.items():
            device.waiting.append(Reply(room, channel_id, bot_name, content))
        self._write()

    def ping(self) -> None:
        """Ping everyone."""
        for conversation in self.conversations:
            conversation.write(encode_ping(conversation.bot_name, f"t{self.seconds()}"))
        self._write()

    def shut_down(self, reconnect_after: float, close: bool = True) -> None:
        """Tell everyone that the server closes, and close."""
        for conversation in [*self.conversations]:
            conversation.write(encode_shutdown("restart", reconnect_after))
            conversation.closing = close
        self._write()

    def migrate(
        self,
        host: str,
        port: int,
        *,
        after: float = 0.0,
        expires_in: float = 600.0,
        tls: bool = False,
        signed: bool = True,
    ) -> None:
        """Tell everyone to go to another server."""
        expires = int((self.seconds() + expires_in) * 1000)
        text = f"serverMigration|{host}|{port}|{'true' if tls else 'false'}|{expires}"
        data = {
            "new_host": host,
            "new_port": port,
            "migrate_after": after,
            "tls": tls,
            "expires": expires,
            "signature": self.signer.sign(text) if signed else "0" * 64,
        }
        for conversation in self.conversations:
            conversation.write(encode_frame("serverMigration", data))
        self._write()

    def end(self, code: ErrorCode, close: bool = True) -> None:
        """Tell everyone what is wrong, and close."""
        for conversation in [*self.conversations]:
            conversation.end(code)
            conversation.closing = close
        self._write()

    def forget(self) -> None:
        """Lose what a process holds that is killed: the numbers, and what waits."""
        for device in self.store.devices.values():
            device.__init__()  # type: ignore[misc]
        self.signatures = SignatureTable(300.0, self.seconds)

    def _write(self) -> None:
        for conversation in [*self.conversations]:
            conversation.on_output()


class FakeConversation:
    """
    One connection.

    @ivar closing: whether the connection is to be closed once the output is out.
    @ivar on_output: called when there is output of the server's own accord.
    @ivar pongs: the answers to its pings.
    """

    def __init__(self, server: FakeServer, number: int) -> None:
        """@param number: no other connection has it."""
        self._server = server
        self._number = number
        self._decoder = LineDecoder()
        self._reader = FrameReader()
        self._inflater: Inflater | None = None
        self._deflater: Deflater | None = None
        self._output: list[bytes] = []
        self._plain = b""  # to go out as it is, ahead of the output
        self._dialect = Dialect.V33
        self._device: FakeDevice | None = None
        self.granted: frozenset[str] = frozenset()
        self.bot_name = ""
        self.closing = False
        self.on_output: Callable[[], None] = lambda: None
        self.pongs: list[Pong] = []
        server.conversations.append(self)

    @property
    def authenticated(self) -> bool:
        """Whether a proof has held."""
        return self._device is not None

    def receive(self, data: bytes) -> None:
        """Bytes have come."""
        (self._inflater or self._decoder).feed(data)
        while not self.closing and (line := self._next_line()) is not None:
            try:
                self._line_received(line)
            except WireError as error:
                self.write(encode_error(error.code, error.text))
                self.closing = self.closing or error.fatal

    def data_to_send(self) -> bytes:
        """What to write next; empty: nothing."""
        self._deliver()
        data = b"".join(self._output)
        self._output.clear()
        if data and self._deflater is not None:
            data = self._deflater.pack(data)
        plain, self._plain = self._plain, b""
        return plain + data

    def write(self, frame: bytes) -> None:
        """A frame of the server's own."""
        self._output.append(frame)

    def end(self, code: ErrorCode) -> None:
        """The server says why, and ends it."""
        self.write(encode_error(code, code.lower()))
        self.closing = True

    def connection_lost(self) -> None:
        """It is over: what was not acknowledged waits again."""
        if self in self._server.conversations:
            self._server.conversations.remove(self)

    def _next_line(self) -> bytes | None:
        line = self._decoder.next_line()
        while line is None and self._inflater is not None:
            piece = self._inflater.next_piece()
            if not piece:
                break
            self._decoder.feed(piece)
            line = self._decoder.next_line()
        return line

    def _line_received(self, line: bytes) -> None:
        message = self._reader.read(line)
        if isinstance(message, Handshake):
            self._handshake(message, line)
        elif isinstance(message, Chat):
            self._chat(message, line)
        elif isinstance(message, Pong):
            self._prove(message, line)
            self.pongs.append(message)
        elif isinstance(message, Ack):
            if self._device is not None:
                for number in [*self._device.unacknowledged]:
                    if number <= message.message_id:
                        del self._device.unacknowledged[number]
        else:
            self._server.migrated.append(message)
            self.closing = self._server.lets_go

    def _handshake(self, handshake: Handshake, line: bytes) -> None:
        server = self._server
        server.handshakes.append(handshake)
        if not server.greet:
            return
        if server.refuse_with is not None:
            self.end(server.refuse_with)
            return
        self.bot_name = handshake.bot_name
        self._dialect = handshake.dialect
        granted = (handshake.capabilities or frozenset()) & server.capabilities
        device = server.store.device((handshake.bot_name, handshake.device_id))
        token = handshake.session_token
        resumed = "session" in granted and token in device.tokens
        more: dict[str, Any] = {}
        if handshake.capabilities and server.capabilities:
            if handshake.auth is not None and not resumed and not self._held(handshake, line):
                self.end(ErrorCode.AUTH_FAILED)
                return
            proven = resumed or handshake.auth is not None
            if not proven:
                granted -= {"deflate"}
            if "deflate" in granted:
                granted -= {"gzip"}
            if proven:
                self._enter(device, granted)
            if proven and "session" in granted:
                fresh = os.urandom(32).hex()
                device.tokens = [str(token), fresh] if resumed else [fresh]
                more = {
                    "session_token": fresh,
                    "session_expires_in": 3600.0,
                    "resumed": resumed,
                    "max_frame_bytes": 1_048_576,
                    "ping_interval": server.ping_interval,
                    "node": "fake",
                }
            self.granted = granted
            more["capabilities"] = sorted(granted)
            if "ack" in granted:
                more["epoch"] = device.epoch
        self.write(
            encode_handshake_complete(
                success=server.welcomes,
                approved=server.approved,
                message="",
                server_version="fake",
                timestamp=timestamp_text(server.seconds()),
                **more,
            )
        )
        if "deflate" in self.granted:
            # The greeting itself is plain, as is what came before it.
            self._plain = b"".join(self._output)
            self._output.clear()
            self._deflater = Deflater()
            self._inflater = Inflater()
            self._inflater.feed(self._decoder.take_rest())
        self._send_again()

    def _held(self, message: Handshake | Chat | Pong, line: bytes) -> bool:
        """Whether a signature holds, and is new."""
        auth = message.auth
        if auth is None or self._server.signer.fault(auth) is not None:
            return False
        return self._server.signatures.judge(auth, self._number, line) is Seen.FRESH

    def _prove(self, message: Chat | Pong, line: bytes) -> None:
        if not self._held(message, line):
            raise WireError(ErrorCode.AUTH_FAILED, "auth was not accepted")
        if self._device is None and message.auth is not None:
            auth = message.auth
            device = self._server.store.device((auth.bot_name, auth.device_id))
            self._enter(device, self.granted)
            self._send_again()

    def _enter(self, device: FakeDevice, granted: frozenset[str]) -> None:
        """A proof has held: an older connection of the same device gives way."""
        self._device = device
        self.granted = granted
        for other in [*self._server.conversations]:
            if other is not self and other._device is device:
                other.end(ErrorCode.TAKEN_OVER)
                other._device = None
                other.on_output()

    def _send_again(self) -> None:
        """What an earlier connection left unacknowledged."""
        if self._device is not None and "ack" in self.granted:
            for number, reply in self._device.unacknowledged.items():
                self.write(self._frame(reply, number))

    def _chat(self, chat: Chat, line: bytes) -> None:
        self._prove(chat, line)
        self._reader.inflate(chat)
        self._dialect = chat.dialect
        device = self._device
        assert device is not None
        if "ack" in self.granted and chat.client_id is not None:
            self.write(encode_ack(chat.client_id))
            if chat.client_id in device.client_ids:
                return
            device.client_ids.add(chat.client_id)
        self._server.chats.append(chat)
        content = self._server.answer(chat)
        if content is not None:
            device.waiting.append(Reply(chat.room, chat.channel_id, self.bot_name, content))

    def _deliver(self) -> None:
        """Hand over what waits for the device."""
        device = self._device
        if device is None or self.closing:
            return
        waiting, device.waiting = device.waiting, []
        for reply in waiting:
            number = None
            if "ack" in self.granted:
                number = device.next_number
                device.next_number += 1
                device.unacknowledged[number] = reply
            self.write(self._frame(reply, number))

    def _frame(self, reply: Reply, number: int | None) -> bytes:
        pack = pack_text if "gzip" in self.granted else None
        now = timestamp_text(self._server.seconds())
        return encode_reply(reply, self._dialect, now, number, pack)


class FakeServerProtocol(protocol.Protocol):
    """Carries the bytes of a L{FakeConversation}."""

    transport: Any

    def __init__(self, conversation: FakeConversation) -> None:
        """@param conversation: new."""
        self.conversation = conversation
        conversation.on_output = self.flush

    # IProtocol

    def dataReceived(self, data: bytes) -> None:
        """Bytes have come."""
        self.conversation.receive(data)
        self.flush()

    def connectionLost(self, reason: Failure = protocol.connectionDone) -> None:
        """It is over."""
        self.conversation.connection_lost()

    def flush(self) -> None:
        """Write what there is to write."""
        data = self.conversation.data_to_send()
        if data:
            self.transport.write(data)
        if self.conversation.closing:
            self.transport.loseConnection()
