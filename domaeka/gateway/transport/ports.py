"""The ports of the server, to which phones connect."""

import contextlib
import errno
import os
import socket
import sys
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import maybeDeferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from domaeka.config import Settings, SocketSettings
from domaeka.errors import ConfigError
from domaeka.gateway.transport.certificates import (
    CHECK_SECONDS,
    Certificates,
    Loaded,
    TlsFiles,
    files_of,
)
from domaeka.gateway.transport.connection import GatewayFactory, TransportContext
from domaeka.gateway.transport.endpoints import BACKLOG, Endpoint, parse_endpoint
from domaeka.gateway.transport.inherited import InheritedSockets, descriptor_of
from domaeka.gateway.transport.proxy import PendingHeaders, ProxyProtocolFactory
from domaeka.twisted_internals import TLSFactory, accept_at_most

#: Unsent bytes in the kernel above which a socket is not writable: a ping waits behind these.
#: Source: tcp(7), TCP_NOTSENT_LOWAT; the size of one batch of L{domaeka.gateway.flow.writer}.
NOTSENT_LOWAT_BYTES = 16_384
#: Connections that a port accepts in one turn of the reactor: 5 ms of work.
ACCEPTED_A_TURN = 16
#: Options for which Python has no constant.  Source: linux/tcp.h.
_LINUX_OPTIONS = {"TCP_NOTSENT_LOWAT": 25} if sys.platform == "linux" else {}


class Sockets:
    """Source of listening sockets: this machine's TCP."""

    def __init__(self, reactor: Any) -> None:
        """@param reactor: the reactor that serves the sockets."""
        self._reactor = reactor
        self.inherited: Any = InheritedSockets(reactor)

    def bind(self, interface: str, port: int, options: SocketSettings, backlog: int) -> Any:
        """A socket as of L{open_listener}, with C{getsockname} and C{close}."""
        return open_listener(interface, port, options, backlog)

    def listen(self, listener: Any, factory: Any) -> Any:
        """Accept connections on a socket from L{bind}.  @return: the port."""
        port = self._reactor.adoptStreamPort(listener.fileno(), listener.family, factory)
        listener.close()  # the reactor has its own duplicate
        accept_at_most(port, ACCEPTED_A_TURN)
        return port


class Listener:
    """
    An address to listen on, and its socket while that is bound but accepts nothing yet.

    A socket that was handed over and is bound to that address is preferred to one of our own.
    """

    def __init__(
        self,
        sockets: Sockets,
        key: str,
        interface: str,
        port: int,
        backlog: int = BACKLOG,
        descriptor: int | None = None,
    ) -> None:
        """
        @param key: the setting, which begins error messages.
        @param descriptor: the socket that was handed over for it, whatever its address.
        """
        self.key = key
        self._sockets = sockets
        self._address = interface, port
        self._backlog = backlog
        self._socket: Any = None
        if descriptor is None:
            descriptor = sockets.inherited.at(interface, port)
        self._descriptor: int | None = descriptor

    @property
    def outlives(self) -> bool:
        """True if its socket outlives the process: connections wait there until it is open."""
        return self._descriptor is not None

    def open(self, options: SocketSettings) -> None:
        """Bind the socket, unless it is bound.  @raise ConfigError: it cannot be bound."""
        if self._socket is not None:
            return
        try:
            if self._descriptor is None:
                self._socket = self._sockets.bind(*self._address, options, self._backlog)
            else:
                self._socket = self._sockets.inherited.open(self._descriptor, self._backlog)
                set_socket_options(self._socket, options)
        except OSError as error:
            interface, port = self._address
            why = error.strerror or str(error)
            if error.errno == errno.EADDRINUSE:
                why += ": does another server run?"
            place = f"{interface or '*'}:{port}"
            raise ConfigError(f"{self.key}: cannot listen on {place}: {why}") from None

    def close(self) -> None:
        """Close the socket if nothing accepts on it yet."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def refuse(self) -> None:
        """Have connecting fail, though the socket outlives the process, until it is opened."""
        if self._descriptor is not None:
            self._sockets.inherited.refuse(self._descriptor)

    def listen(self, factory: Any) -> Any:
        """Accept connections on the socket, which the port now owns.  @return: the port."""
        port = self._sockets.listen(self._socket, factory)
        self._socket = None
        return port


class Ports:
    """All ports to which phones connect."""

    log = Logger()

    def __init__(
        self,
        shared: TransportContext,
        sockets: Sockets,
        reactor: Any,
        settings: Settings,
        failed: Callable[[Failure | str], object],
    ) -> None:
        """
        Bind the sockets; accept nothing yet.

        @param failed: called with the reason where one of C{server.endpoints} fails to listen.
        @raise ConfigError: a socket cannot be bound, or a certificate cannot be read.
        """
        self._shared = shared
        self._context = shared.context
        self._reactor = reactor
        self._options = settings.socket
        self._failed = failed
        self._listening: list[Any] = []
        self._certificates: list[Certificates] = []
        self._checking = LoopingCall(self._check_certificates)
        self._checking.clock = reactor
        self._pending_headers = PendingHeaders(shared.context, shared.rules, reactor)
        server, tls = settings.server, settings.tls
        endpoints = []
        for endpoint in map(parse_endpoint, server.endpoints):
            made = endpoint.made_by_twisted(reactor) if endpoint.port is None else None
            descriptor = descriptor_of(made)
            if descriptor is not None:
                sockets.inherited.claim(endpoint.key, descriptor)
            endpoints.append((endpoint, made, descriptor))
        #: Addresses to listen on, with their factories.
        self._listeners: list[tuple[Listener, Any]] = []

        def add(listener: Listener, files: TlsFiles | None = None, proxied: bool = False) -> None:
            factory = self._factory(files, proxied, outlives=listener.outlives)
            self._listeners.append((listener, factory))

        add(Listener(sockets, "server.port", server.interface, server.port))
        if tls.certificate:
            add(Listener(sockets, "tls.port", server.interface, tls.port), files_of(tls))
        #: Endpoints that Twisted makes, with their factories.
        self._others: list[tuple[Endpoint, Any, Any]] = []
        for endpoint, made, descriptor in endpoints:
            if made is not None and descriptor is None:
                factory = self._factory(endpoint.files, endpoint.proxied, wrapped=True)
                self._others.append((endpoint, made, factory))
                continue
            address = endpoint.interface, endpoint.port or 0
            listener = Listener(sockets, endpoint.key, *address, endpoint.backlog, descriptor)
            add(listener, endpoint.files, endpoint.proxied)
        self.open()

    def _factory(
        self,
        files: TlsFiles | None = None,
        proxied: bool = False,
        wrapped: bool = False,
        outlives: bool = False,
    ) -> Any:
        """
        The factory for a port.

        @param proxied: True if a balancer sends the peer's address.
        @param wrapped: True if Twisted may wrap the factory.
        @param outlives: True if the socket outlives the process.
        """
        wrapped = wrapped or proxied or files is not None
        gateway = GatewayFactory(self._shared, wrapped, outlives)
        pending = self._pending_headers
        behind_proxy = ProxyProtocolFactory(pending, gateway)
        if files is None:
            return behind_proxy if proxied else gateway
        certificates: Any = Certificates(files)  # mypy does not know zope's interfaces
        self._certificates.append(certificates)

        def encrypted(inner: Any) -> Any:
            return TLSFactory(certificates, False, inner, self._reactor)

        if not proxied:
            return encrypted(gateway)
        return ProxyProtocolFactory(pending, encrypted(gateway), encrypted(behind_proxy))

    # Certificates

    @property
    def certificate_ends(self) -> float:
        """The earliest end of a certificate, in seconds since 1970; 0: there is none."""
        return min((each.expires for each in self._certificates), default=0.0)

    def health(self) -> str | None:
        """The problem with the certificate that ends first, if any."""
        first = min(self._certificates, key=lambda each: each.expires, default=None)
        return None if first is None else first.health(self._context.wall())

    def load_certificates(self) -> list[Loaded]:
        """Read all files, for L{use_certificates}.  @raise ConfigError: one cannot be used."""
        return [each.load() for each in self._certificates]

    def use_certificates(self, loaded: list[Loaded]) -> bool:
        """Use C{loaded} for all connections from now on.  @return: True if a file has changed."""
        changed = [each.use(one) for each, one in zip(self._certificates, loaded, strict=True)]
        self.warn_of_ends()
        return any(changed)

    def warn_of_ends(self) -> None:
        """Log a warning for each certificate that ends soon, or has ended."""
        for each in self._certificates:
            wrong = each.health(self._context.wall())
            if wrong is not None:
                self.log.warn("certificate {path}: {error}", path=each.path, error=wrong)

    def _check_certificates(self) -> None:
        for each in self._certificates:
            try:
                each.reload_if_changed()
            except Exception:
                self.log.failure("a look at the certificates failed")

    # Ports

    @property
    def listening(self) -> bool:
        """True while connections are accepted."""
        return bool(self._listening)

    @property
    def places(self) -> list[str]:
        """The addresses that accept connections, for people."""
        return [place_of(port) for port in self._listening]

    def start(self) -> None:
        """Begin to check the certificates for changes."""
        self.warn_of_ends()
        if self._certificates:
            self._checking.start(CHECK_SECONDS, now=False)

    def stop(self) -> None:
        """Stop checking the certificates."""
        if self._checking.running:
            self._checking.stop()

    def open(self) -> None:
        """
        Bind the sockets, at the start or after L{shut}; accept nothing yet.

        @raise ConfigError: one cannot be bound; then none is.
        """
        try:
            for listener, _ in self._listeners:
                listener.open(self._options)
        except ConfigError:
            self._close_listeners()
            raise

    def _close_listeners(self) -> None:
        for listener, _ in self._listeners:
            listener.close()

    def listen(self) -> None:
        """Accept connections, unless they are accepted already.  @raise ConfigError: as L{open}."""
        if self.listening:
            return
        self.open()
        for listener, factory in self._listeners:
            handed_over = ", handed over" if listener.outlives else ""
            self._listens(listener.listen(factory), listener.key + handed_over)
        for endpoint, other, factory in self._others:
            other.listen(factory).addCallback(self._listens_other, endpoint).addErrback(
                self._cannot_listen, endpoint
            )

    def shut(self) -> None:
        """
        Stop accepting connections, and close the sockets.  Connections wait at a socket that
        outlives the process.
        """
        ports, self._listening = self._listening, []
        self._pending_headers.close()
        self._close_listeners()
        for port in ports:
            maybeDeferred(port.stopListening).addErrback(
                lambda failure: self.log.failure("a port could not be shut", failure)
            )

    def refuse(self) -> None:
        """L{shut}, and have connecting fail everywhere: phones are to go elsewhere."""
        self.shut()
        for listener, _ in self._listeners:
            listener.refuse()

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
        self.log.info(
            "listening for phones on {place} ({setting})", place=place_of(port), setting=key
        )


def place_of(port: Any) -> str:
    """The address of a port, for people."""
    address = port.getHost()
    host = getattr(address, "host", None)
    if host is None:
        name = getattr(address, "name", None)  # of a Unix socket
        return os.fsdecode(name) if name else str(address)
    number = getattr(address, "port", "")
    if host in ("::", "0.0.0.0"):
        return f"port {number} of all addresses"
    return f"[{host}]:{number}" if ":" in host else f"{host}:{number}"


def set_socket_options(listener: socket.socket, settings: SocketSettings) -> None:
    """Set the options that connections inherit; not SO_LINGER, which would block the reactor."""
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
        ("TCP_MAXSEG", settings.max_segment),  # 0: none of ours
    ):
        option = getattr(socket, name, _LINUX_OPTIONS.get(name))
        if option is not None:
            with contextlib.suppress(OSError):  # some platforms have the constant only
                listener.setsockopt(socket.IPPROTO_TCP, option, value)


def open_listener(
    interface: str, port: int, options: SocketSettings, backlog: int = BACKLOG
) -> socket.socket:
    """
    A listening socket; its options are set before it is bound.

    @param interface: an address; empty: all addresses, of IPv6 and IPv4 where the machine has both.
    @param port: a number; 0: any free port.
    @raise OSError: the port is in use, or not permitted.
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
    """True if this machine can listen on IPv6 and IPv4 with one socket."""
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
