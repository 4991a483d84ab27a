"""
The ports of a server: where phones connect.
"""

import contextlib
import errno
import os
import socket
import sys
from collections.abc import Callable
from typing import Any

from twisted.internet import tcp
from twisted.internet.defer import maybeDeferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure

from domaeka.config import Settings, SocketSettings
from domaeka.errors import ConfigError
from domaeka.gateway.balancer import AnnouncedFactory, Lobby
from domaeka.gateway.certificates import LOOK_SECONDS, Certificates, Loaded, TlsFiles, files_of
from domaeka.gateway.endpoints import BACKLOG, Endpoint, parse_endpoint
from domaeka.gateway.protocol import GatewayFactory
from domaeka.gateway.registry import Registry

#: Bytes that the kernel holds unsent before a socket stops being writable: what a ping may have
#: to wait behind.  Source: tcp(7), TCP_NOTSENT_LOWAT; as much as L{Session} writes at once.
NOTSENT_LOWAT_BYTES = 16_384
#: Connections that a port lets in in one turn of the reactor: 5 ms of work.
ACCEPTED_A_TURN = 16
#: Options that Python does not name.  Source: linux/tcp.h.
_LINUX_OPTIONS = {"TCP_NOTSENT_LOWAT": 25} if sys.platform == "linux" else {}


class _Place:
    """A place on TCP where phones connect: a socket that is bound, or none."""

    def __init__(
        self, key: str, interface: str, port: int, factory: Any, backlog: int = BACKLOG
    ) -> None:
        """
        @param key: what an error about it begins with.
        @param factory: makes its connections.
        """
        self.key = key
        self._address = interface, port
        self._backlog = backlog
        self._factory = factory
        self._socket: socket.socket | None = None

    def open(self, options: SocketSettings) -> None:
        if self._socket is None:
            self._socket = open_port(self.key, *self._address, options, self._backlog)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def adopt(self, reactor: Any) -> Any:
        assert self._socket is not None
        port = adopt(reactor, self._socket, self._factory)
        self._socket = None
        return port


class Ports:
    """Where phones connect."""

    log = Logger()

    def __init__(
        self,
        registry: Registry,
        reactor: Any,
        settings: Settings,
        failed: Callable[[Failure | str], object],
    ) -> None:
        """
        Have the sockets bound, let nobody in.

        @param failed: called with the reason where one of C{server.endpoints} cannot be had.
        @raise ConfigError: a port cannot be had, or a certificate not be read.
        """
        self._registry = registry
        self._reactor = reactor
        self._options = settings.socket
        self._failed = failed
        self._listening: list[Any] = []
        self._certificates: list[Certificates] = []
        self._look = LoopingCall(self._look_at_certificates)
        self._look.clock = reactor
        self._lobby = Lobby(registry, reactor)
        server, tls = settings.server, settings.tls
        self._places = [_Place("server.port", server.interface, server.port, self._factory())]
        if tls.certificate:
            factory = self._factory(files_of(tls))
            self._places.append(_Place("tls.port", server.interface, tls.port, factory))
        #: What Twisted listens at, and with what.
        self._others: list[tuple[Endpoint, Any, Any]] = []
        for endpoint in map(parse_endpoint, server.endpoints):
            factory = self._factory(endpoint.files, endpoint.proxied, endpoint.port is None)
            if endpoint.port is None:
                self._others.append((endpoint, endpoint.made_by_twisted(reactor), factory))
            else:
                where = endpoint.key, endpoint.interface, endpoint.port
                self._places.append(_Place(*where, factory, endpoint.backlog))
        self.open()

    def _factory(
        self, files: TlsFiles | None = None, proxied: bool = False, wrapped: bool = False
    ) -> Any:
        """
        What makes the connections of a place.

        @param files: what TLS is spoken with, if it is.
        @param proxied: whether a balancer says who the peer is.
        @param wrapped: whether Twisted may put something around it.
        """
        gateway = GatewayFactory(self._registry, wrapped or proxied or files is not None)
        announced = AnnouncedFactory(self._lobby, gateway)
        if files is None:
            return announced if proxied else gateway
        certificates: Any = Certificates(files)  # zope's interfaces say nothing to a type checker
        self._certificates.append(certificates)

        def encrypted(inner: Any) -> Any:
            return TLSMemoryBIOFactory(certificates, False, inner, self._reactor)

        if not proxied:
            return encrypted(gateway)
        return AnnouncedFactory(self._lobby, encrypted(gateway), encrypted(announced))

    # Certificates

    @property
    def certificate_ends(self) -> float:
        """When the first certificate to end does, in seconds since 1970; 0: there is none."""
        return min((each.expires for each in self._certificates), default=0.0)

    def health(self) -> str | None:
        """What is wrong with the certificate that ends first."""
        first = min(self._certificates, key=lambda each: each.expires, default=None)
        return None if first is None else first.health(self._reactor.seconds())

    def load_certificates(self) -> list[Loaded]:
        """
        Read all files again.

        @return: for L{use_certificates}.
        @raise ConfigError: one cannot be used: one line that says which, and why.
        """
        return [each.load() for each in self._certificates]

    def use_certificates(self, loaded: list[Loaded]) -> bool:
        """
        Show to what connects from now on what was read.

        @return: whether the files are others than before.
        """
        changed = [each.use(one) for each, one in zip(self._certificates, loaded, strict=True)]
        self.warn_of_ends()
        return any(changed)

    def warn_of_ends(self) -> None:
        """Say of each certificate in the log what is wrong with its end."""
        for each in self._certificates:
            wrong = each.health(self._reactor.seconds())
            if wrong is not None:
                self.log.warn("certificate {path}: {wrong}", path=each.path, wrong=wrong)

    def _look_at_certificates(self) -> None:
        for each in self._certificates:
            try:
                each.look()
            except Exception:
                self.log.failure("a look at the certificates failed")

    # Ports

    @property
    def listening(self) -> bool:
        """Whether phones are let in."""
        return bool(self._listening)

    def start(self) -> None:
        """Begin to look whether certificates have changed."""
        self.warn_of_ends()
        if self._certificates:
            self._look.start(LOOK_SECONDS, now=False)

    def stop(self) -> None:
        """Look no more."""
        if self._look.running:
            self._look.stop()

    def open(self) -> None:
        """
        Have the sockets for phones, bound: at the start, or after they were shut.

        @raise ConfigError: one cannot be had; then there is none.
        """
        try:
            for place in self._places:
                place.open(self._options)
        except ConfigError:
            for place in self._places:
                place.close()
            raise

    def listen(self) -> None:
        """
        Let phones in.

        @raise ConfigError: as of L{open}.
        """
        self.open()
        for place in self._places:
            self._listens(place.adopt(self._reactor), place.key)
        for endpoint, other, factory in self._others:
            other.listen(factory).addCallback(self._listens_other, endpoint).addErrback(
                self._cannot_listen, endpoint
            )

    def shut(self) -> None:
        """Let nobody in any more."""
        ports, self._listening = self._listening, []
        self._lobby.close()
        for port in ports:
            maybeDeferred(port.stopListening).addErrback(
                lambda failure: self.log.failure("a port could not be shut", failure)
            )

    def _listens_other(self, port: Any, endpoint: Endpoint) -> None:
        listener = getattr(port, "socket", None)
        if listener is not None:
            set_socket_options(listener, self._options)
        self._listens(port, endpoint.key)

    def _cannot_listen(self, failure: Failure, endpoint: Endpoint) -> None:
        error: Any = getattr(failure.value, "socketError", failure.value)
        why = getattr(error, "strerror", None) or failure.getErrorMessage()
        self._failed(f"{endpoint.key}: {why}")

    def _listens(self, port: Any, key: str) -> None:
        self._listening.append(port)
        self.log.info("listening for phones on {place} ({key})", place=place_of(port), key=key)


def open_port(
    key: str, interface: str, port: int, options: SocketSettings, backlog: int = BACKLOG
) -> socket.socket:
    """
    A listening socket for a setting.

    @param key: the setting's.
    @raise ConfigError: it cannot be had.
    """
    try:
        return open_listener(interface, port, options, backlog)
    except OSError as error:
        place = f"{interface or '*'}:{port}"
        why = error.strerror or str(error)
        if error.errno == errno.EADDRINUSE:
            why += ": does another server run?"
        raise ConfigError(f"{key}: cannot listen on {place}: {why}") from None


def adopt(reactor: Any, listener: socket.socket, factory: Any) -> Any:
    """Let in at a listening socket.  @return: the port."""
    port = reactor.adoptStreamPort(listener.fileno(), listener.family, factory)
    listener.close()  # the reactor has one of its own
    if isinstance(port, tcp.Port):
        port.__class__ = _Gate
    return port


class _Gate(tcp.Port):
    """
    Lets in a few at a time, however many come, so that those who are in have their turn.

    Twisted's own lets in more each time, for as long as more come.
    """

    numberAccepts = property(lambda self: ACCEPTED_A_TURN, lambda self, adapted: None)


def place_of(port: Any) -> str:
    """Where a port is, as people write it."""
    address = port.getHost()
    host = getattr(address, "host", None)
    if host is None:
        name = getattr(address, "name", None)  # of a socket in the file system
        return os.fsdecode(name) if name else str(address)
    number = getattr(address, "port", "")
    if host in ("::", "0.0.0.0"):
        return f"port {number} of all addresses"
    return f"[{host}]:{number}" if ":" in host else f"{host}:{number}"


def set_socket_options(listener: socket.socket, settings: SocketSettings) -> None:
    """
    Set what connections inherit on a listening socket.

    Lingering is no socket option here: SO_LINGER would block the whole reactor.
    """
    if settings.buffer_bytes:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, settings.buffer_bytes)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, settings.buffer_bytes)
    if listener.family not in (socket.AF_INET, socket.AF_INET6):
        return
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, int(settings.nodelay))
    for name, value in (
        ("TCP_KEEPIDLE", settings.keepalive_idle),
        ("TCP_KEEPINTVL", settings.keepalive_interval),
        ("TCP_KEEPCNT", settings.keepalive_count),
        ("TCP_USER_TIMEOUT", settings.user_timeout_ms),
        ("TCP_NOTSENT_LOWAT", NOTSENT_LOWAT_BYTES),
    ):
        option = getattr(socket, name, _LINUX_OPTIONS.get(name))
        if option is not None:
            with contextlib.suppress(OSError):  # a platform that has the name only
                listener.setsockopt(socket.IPPROTO_TCP, option, value)


def open_listener(
    interface: str, port: int, options: SocketSettings, backlog: int = BACKLOG
) -> socket.socket:
    """
    A listening socket with every option set before it is bound.

    @param interface: an address; empty: all, of IPv6 and IPv4 where the machine has both.
    @param port: 0: any free one.
    @raise OSError: the port is taken, or not ours to take.
    """
    if interface:
        family, _, _, _, address = socket.getaddrinfo(
            interface, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return _listen(family, address, options, backlog)
    if _has_ipv6():
        return _listen(socket.AF_INET6, ("::", port), options, backlog)
    return _listen(socket.AF_INET, ("0.0.0.0", port), options, backlog)


def _has_ipv6() -> bool:
    """Whether this machine can listen on IPv6 and IPv4 with one socket."""
    if not socket.has_dualstack_ipv6():
        return False
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def _listen(family: int, address: Any, options: SocketSettings, backlog: int) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        if options.reuse_address:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if options.reuse_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6 and address[0] == "::":
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        set_socket_options(listener, options)
        listener.bind(address)
        listener.listen(backlog)
    except BaseException:
        listener.close()
        raise
    return listener
