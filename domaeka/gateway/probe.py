"""
Whether another server answers: tried before phones are sent there.
"""

from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.ssl import optionsForClientTLS
from twisted.python.failure import Failure

from domaeka.errors import DomaekaError, WireError
from domaeka.phonewire import Greeting, Identity, PhoneWriter, read_server_frame
from domaeka.wire import LineDecoder

#: How long the other server may take to answer a handshake, in seconds.
PROBE_SECONDS: Final = 10.0


class ProbeFailed(DomaekaError):
    """The other server does not answer as one of ours does; the text says how."""


class _Probe(Protocol):
    """Shake hands, and leave."""

    def __init__(self, line: bytes, answer: "Deferred[None]") -> None:
        self.transport: Any  # ITransport and more: typed in part only
        self._line = line
        self._answer: Deferred[None] | None = answer
        self._decoder = LineDecoder()

    # IProtocol

    def connectionMade(self) -> None:
        self.transport.write(self._line)

    def dataReceived(self, data: bytes) -> None:
        self._decoder.feed(data)
        try:
            while self._answer is not None and (line := self._decoder.next_line()) is not None:
                frame = read_server_frame(line)
                if isinstance(frame, Greeting):
                    self._end(None if frame.success else "it refuses the handshake")
        except WireError as error:
            self._end(f"it says what no server of ours says: {error}")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        clean = reason.type is ConnectionDone
        self._end("it closes the connection" if clean else "the connection is lost")

    def _end(self, trouble: str | None) -> None:
        answer, self._answer = self._answer, None
        if answer is None:
            return
        self.transport.abortConnection()
        if trouble is None:
            answer.callback(None)
        else:
            answer.errback(ProbeFailed(trouble))


def probe(reactor: Any, host: str, port: int, tls: bool, name: str) -> "Deferred[None]":
    """
    Shake hands with another server.

    @param name: of this server, which is what the other one sees.
    @return: fires when it has answered; fails with L{ProbeFailed}, in words, within
        L{PROBE_SECONDS}.
    """
    endpoint: Any = HostnameEndpoint(reactor, host, port, timeout=PROBE_SECONDS)
    if tls:
        endpoint = wrapClientTLS(optionsForClientTLS(host), endpoint)
    identity = Identity(bot_name="domaeka", device_id=name[:128], client_type="domaeka")
    writer = PhoneWriter(identity, None, reactor.seconds)
    answer: Deferred[None] = Deferred()
    factory = Factory.forProtocol(lambda: _Probe(writer.handshake(), answer))

    def failed(failure: Failure) -> Failure:
        if isinstance(failure.value, ProbeFailed):
            return failure
        text = failure.getErrorMessage() or type(failure.value).__name__
        return Failure(ProbeFailed(f"{host}:{port}: {text}"))  # type: ignore[no-untyped-call]

    connecting = endpoint.connect(factory)
    connecting.addCallback(lambda _: answer)
    connecting.addTimeout(PROBE_SECONDS, reactor)
    return connecting.addErrback(failed)  # type: ignore[no-any-return]
