"""
The ports of a server: where phones connect.
"""

import contextlib
import socket
import sys
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure

from domaeka.config import Settings, SocketSettings
from domaeka.errors import ConfigError
from domaeka.gateway.certificates import LOOK_SECONDS, Certificates
from domaeka.gateway.protocol import GatewayFactory
from domaeka.gateway.registry import Registry

#: Bytes that the kernel holds unsent before a socket stops being writable: what a ping may have
#: to wait behind.  Source: tcp(7), TCP_NOTSENT_LOWAT; as much as L{Session} writes at once.
NOTSENT_LOWAT_BYTES = 16_384
#: Connections that the kernel holds until they are accepted.  Source: a fleet of some hundred
#: phones returns within one second after a restart.
BACKLOG = 1024
#: Options that Python does not name.  Source: linux/tcp.h.
_LINUX_OPTIONS = {"TCP_NOTSENT_LOWAT": 25} if sys.platform == "linux" else {}


class Ports:
    """
    Where phones connect.

    @ivar certificates: what is shown to phones that speak TLS; L{None}: none can.
    """

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
        self._settings = settings
        self._failed = failed
        self._ports: list[Any] = []
        self._phone_socket: Any = None
        self._tls_socket: Any = None
        self.certificates = Certificates(settings.tls) if settings.tls.certificate else None
        self._look = LoopingCall(self._look_at_certificates)
        self._look.clock = reactor
        self.open()

    @property
    def listening(self) -> bool:
        """Whether phones are let in."""
        return bool(self._ports)

    def start(self) -> None:
        """Begin to look whether certificates have changed."""
        if self.certificates is not None:
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
        settings = self._settings
        server = settings.server
        if self._phone_socket is None:
            self._phone_socket = open_port(
                "server.port", server.interface, server.port, settings.socket
            )
        try:
            if self.certificates is not None and self._tls_socket is None:
                self._tls_socket = open_port(
                    "tls.port", server.interface, settings.tls.port, settings.socket
                )
        except ConfigError:
            self._phone_socket.close()
            self._phone_socket = None
            raise

    def listen(self) -> None:
        """
        Let phones in.

        @raise ConfigError: as of L{open}.
        """
        self.open()
        factory = GatewayFactory(self._registry)
        self._listening(adopt(self._reactor, self._phone_socket, factory), "phones")
        if self.certificates is not None:
            # zope's interfaces say nothing to a type checker.
            certificates: Any = self.certificates
            inner: Any = GatewayFactory(self._registry, wrapped=True)
            tls = TLSMemoryBIOFactory(certificates, False, inner, self._reactor)
            self._listening(adopt(self._reactor, self._tls_socket, tls), "phones, by TLS,")
        self._phone_socket = self._tls_socket = None
        for text in self._settings.server.endpoints:
            self._listen_at(text)

    def shut(self) -> None:
        """Let nobody in any more."""
        ports, self._ports = self._ports, []
        for port in ports:
            maybeDeferred(port.stopListening).addErrback(
                lambda failure: self.log.failure("a port could not be shut", failure)
            )

    def _listen_at(self, text: str) -> None:
        """Listen at one of C{server.endpoints}."""
        try:
            endpoint = serverFromString(  # type: ignore[no-untyped-call]
                self._reactor, text
            )
        except (ValueError, TypeError, LookupError, OSError) as error:
            self._failed(f"server.endpoints: {text}: {error}")
            return
        factory = GatewayFactory(self._registry, text.startswith("haproxy:"), wrapped=True)

        def listening(port: Any) -> None:
            listener = getattr(port, "socket", None)
            if listener is not None:
                set_socket_options(listener, self._settings.socket)
            self._listening(port, text.partition(":")[0])

        endpoint.listen(factory).addCallback(listening).addErrback(self._failed)

    def _listening(self, port: Any, what: str) -> None:
        self._ports.append(port)
        self.log.info("listening for {what} on {place}", what=what, place=place_of(port))

    def _look_at_certificates(self) -> None:
        assert self.certificates is not None
        try:
            self.certificates.look()
        except Exception:
            self.log.failure("a look at the certificates failed")


def open_port(key: str, interface: str, port: int, options: SocketSettings) -> socket.socket:
    """
    A listening socket for a setting.

    @param key: the setting's.
    @raise ConfigError: it cannot be had.
    """
    try:
        return open_listener(interface, port, options)
    except OSError as error:
        place = f"{interface or '*'}:{port}"
        raise ConfigError(f"{key}: cannot listen on {place}: {error.strerror or error}") from None


def adopt(reactor: Any, listener: socket.socket, factory: Any) -> Any:
    """Let in at a listening socket.  @return: the port."""
    port = reactor.adoptStreamPort(listener.fileno(), listener.family, factory)
    listener.close()  # the reactor has one of its own
    return port


def place_of(port: Any) -> str:
    """Where a port is, as people write it."""
    address = port.getHost()
    host = getattr(address, "host", None)
    if host is None:
        return str(address)
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


def open_listener(interface: str, port: int, options: SocketSettings) -> socket.socket:
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
        return _listen(family, address, options)
    if _has_ipv6():
        return _listen(socket.AF_INET6, ("::", port), options)
    return _listen(socket.AF_INET, ("0.0.0.0", port), options)


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


def _listen(family: int, address: Any, options: SocketSettings) -> socket.socket:
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
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener
