"""
Whether another server answers: tried before phones are sent there.
"""

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
from domaeka.interfaces import DeviceKey
from domaeka.phonewire import Complaint, Greeting, Identity, PhoneWriter, read_server_frame
from domaeka.policies.auth import Signer
from domaeka.wire import LineDecoder

#: How long the other server may take to answer a handshake, in seconds.
PROBE_SECONDS: Final = 10.0
#: The bot name under which servers shake hands with each other.
SERVER_NAME: Final = "domaeka"


class ProbeFailed(DomaekaError):
    """The other server does not answer as one of ours does; the text says how."""


class _Probe(Protocol):
    """Shake hands, and leave."""

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
                if isinstance(frame, Complaint) and frame.code == ErrorCode.SHUTTING_DOWN:
                    self._end("it stops, or is moving its own phones")
                elif isinstance(frame, Complaint):
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


def probe_key(node: str) -> DeviceKey:
    """As which device the server that is called C{node} shakes hands."""
    return DeviceKey(SERVER_NAME, node[:128])


def probe(
    reactor: Any, host: str, port: int, tls: bool, node: str, signer: Signer
) -> "Deferred[None]":
    """
    Shake hands with another server, as a phone does, signed with our secrets.

    @param node: what this server is called.
    @return: fires when it has answered; fails with L{ProbeFailed}, in words, within
        L{PROBE_SECONDS}.  May be cancelled.
    """
    endpoint: Any = HostnameEndpoint(reactor, host, port, timeout=PROBE_SECONDS)
    if tls:
        endpoint = wrapClientTLS(optionsForClientTLS(host), endpoint)
    key = probe_key(node)
    identity = Identity(
        bot_name=key.bot_name,
        device_id=key.device_id,
        version=__version__,
        client_type=SERVER_NAME,
        device_info="a server that asks whether this one answers",
    )
    writer = PhoneWriter(identity, signer.sign, reactor.seconds)
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
