"""The probe of another server, before phones are sent there."""

from collections.abc import Callable
from typing import Any, Final

from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import ConnectionDone
from twisted.internet.error import TimeoutError as ConnectTimeoutError
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.ssl import optionsForClientTLS
from twisted.python.failure import Failure

from domaeka import __version__
from domaeka.errors import DomaekaError, ErrorCode, WireError
from domaeka.gateway.directory import server_key
from domaeka.policies.auth import Signer
from domaeka.wire import ErrorFrame, Greeting, Identity, LineDecoder, PhoneWriter, read_server_frame

#: Time for the other server to answer a handshake, in seconds.
PROBE_SECONDS: Final = 10.0


class ProbeFailed(DomaekaError):
    """The other server does not answer like one of ours; the text gives the reason."""


class _Probe(Protocol):
    """Shakes hands, and closes the connection."""

    transport: Any  # ITransport and more: typed in part only

    def __init__(self, line: bytes) -> None:
        self._line = line
        self._decoder = LineDecoder()
        self._ended = False
        #: Fires once the other server has answered.
        self.answer: Deferred[None] = Deferred(lambda _: self._leave())

    # IProtocol

    def connectionMade(self) -> None:
        self.transport.write(self._line)

    def dataReceived(self, data: bytes) -> None:
        self._decoder.feed(data)
        try:
            while not self._ended and (line := self._decoder.next_line()) is not None:
                frame = read_server_frame(line)
                if isinstance(frame, ErrorFrame) and frame.code == ErrorCode.SHUTTING_DOWN:
                    self._end("it stops, or is moving its own phones")
                elif isinstance(frame, ErrorFrame):
                    self._end(f"it answers {frame.code!r:.64}")
                elif isinstance(frame, Greeting):
                    self._end(None if frame.success else "it refuses the handshake")
        except WireError as error:
            self._end(f"it says what no server of ours says: {error}")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        clean = reason.type is ConnectionDone
        self._end("it closes the connection" if clean else reason.getErrorMessage())

    def _leave(self) -> None:
        self._ended = True
        self.transport.abortConnection()

    def _end(self, trouble: str | None) -> None:
        if self._ended:
            return
        self._leave()
        if trouble is None:
            self.answer.callback(None)
        else:
            self.answer.errback(ProbeFailed(trouble))


def probe(
    reactor: Any,
    wall: Callable[[], float],
    host: str,
    port: int,
    tls: bool,
    node: str,
    signer: Signer,
) -> "Deferred[None]":
    """
    Shake hands with another server, as a phone does, signed with our secrets.

    @param wall: the wall clock, in seconds since 1970.
    @param node: the name of this server.
    @return: fires when it has answered; fails with L{ProbeFailed} within L{PROBE_SECONDS}.  May be
        cancelled.
    """
    endpoint: Any = HostnameEndpoint(reactor, host, port, timeout=PROBE_SECONDS)
    if tls:
        endpoint = wrapClientTLS(optionsForClientTLS(host), endpoint)
    key = server_key(node)
    identity = Identity(
        bot_name=key.bot_name,
        device_id=key.device_id,
        version=__version__,
        client_type=key.bot_name,
        device_info="a server that asks whether this one answers",
    )
    writer = PhoneWriter(identity, signer.sign, wall)
    factory = Factory.forProtocol(lambda: _Probe(writer.handshake(signed=True)))
    factory.noisy = False

    def failed(failure: Failure) -> Failure:
        if isinstance(failure.value, TimeoutError | ConnectTimeoutError):
            text = f"no answer within {PROBE_SECONDS:.0f} s"
        else:
            text = failure.getErrorMessage() or type(failure.value).__name__
        return Failure(ProbeFailed(f"{host}:{port}: {text}"))  # type: ignore[no-untyped-call]

    connecting = endpoint.connect(factory)
    connecting.addCallback(lambda connected: connected.answer)
    connecting.addTimeout(PROBE_SECONDS, reactor)
    return connecting.addErrback(failed)  # type: ignore[no-any-return]
