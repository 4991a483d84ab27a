"""Tests for L{domaeka.gateway.transport.ports}; real sockets are in the integration tests."""

import errno
import json
import os
import socket
from pathlib import Path
from typing import Any

from twisted.internet import tcp
from twisted.internet.address import IPv6Address, UNIXAddress
from twisted.internet.endpoints import AdoptedStreamServerEndpoint, serverFromString
from twisted.internet.error import CannotListenError, ConnectionRefusedError
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import Logger

from domaeka.config import Settings, load_settings
from domaeka.errors import ConfigError
from domaeka.gateway.transport import inherited as inherited_module
from domaeka.gateway.transport import ports as ports_module
from domaeka.gateway.transport.certificates import CHECK_SECONDS
from domaeka.gateway.transport.connection import GatewayFactory
from domaeka.gateway.transport.endpoints import Endpoint
from domaeka.gateway.transport.inherited import InheritedSockets, descriptor_of
from domaeka.gateway.transport.ports import (
    ACCEPTED_A_TURN,
    Ports,
    Sockets,
    open_listener,
    place_of,
    set_socket_options,
)
from domaeka.gateway.transport.proxy import ProxyProtocolFactory
from domaeka.twisted_internals import TLSFactory
from tests.gateway_case import GatewayCase
from tests.integration.test_tls import Authority
from tests.server_case import Network


class PortsCase(GatewayCase):
    """Ports on a virtual network."""

    def setUp(self) -> None:
        super().setUp()
        self.network = Network(self.clock)
        self.reactor: Any = MemoryReactorClock()
        self.failures: list[object] = []
        self.place = Path(self.mktemp()).absolute()
        self.place.mkdir(parents=True)

    def make(self, *settings: tuple[str, str]) -> Ports:
        """Ports that nobody is let in at."""
        interface = ("server.interface", "127.0.0.1")
        loaded = load_settings(None, [interface, *settings], {})
        return Ports(self.shared, self.network, self.reactor, loaded, self.failures.append)

    def certificate(self, days: float = 100.0) -> Path:
        """A certificate, for so many days."""
        self.authority = Authority(self.place, "authority")
        file = self.place / "server.pem"
        self.authority.issue(file)
        return file


class PlaceTests(PortsCase):
    """Where phones are let in."""

    def test_opened_and_shut(self) -> None:
        """Sockets are there at once, phones are let in later; shut, the ports are free."""
        ports = self.make(("server.endpoints", '["tcp:9001:interface=127.0.0.1"]'))
        self.assertEqual((self.network.taken, ports.listening), ({9000, 9001}, False))
        ports.listen()
        ports.listen()
        self.assertEqual(ports.places, ["127.0.0.1:9000", "127.0.0.1:9001"])
        ports.shut()
        self.assertEqual((self.network.taken, ports.listening), (set(), False))
        ports.listen()
        self.assertTrue(self.network.accepts(9001))

    def test_shut_before_it_was_opened(self) -> None:
        """Sockets at which nobody was let in are let go of, too."""
        self.make().shut()
        self.assertEqual(self.network.taken, set())

    def test_one_of_two_is_taken(self) -> None:
        """Where one cannot be had none is kept; the endpoint is named as it was written."""
        self.network.taken = {9001}
        text = "tcp:9001:interface=127.0.0.1"
        error = self.assertRaises(ConfigError, self.make, ("server.endpoints", json.dumps([text])))
        self.assertIn(f"server.endpoints: {text}: cannot listen on 127.0.0.1:9001: ", str(error))
        self.assertEqual(self.network.taken, {9001})

    def test_cannot_be_shut(self) -> None:
        """A port that makes trouble keeps no other open."""
        ports = self.make(("server.endpoints", '["tcp:9001:interface=127.0.0.1"]'))
        ports.listen()
        ports._listening[0].stopListening = lambda: 1 // 0
        ports.shut()
        self.assertEqual((ports.listening, self.network.accepts(9001)), (False, False))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class EndpointTests(PortsCase):
    """What Twisted listens at."""

    def test_file(self) -> None:
        """A socket in the file system lets in once phones are let in, through a balancer too."""
        places = ["unix:/run/a", "haproxy:unix:/run/b"]
        ports = self.make(("server.endpoints", json.dumps(places)))
        self.assertEqual(self.reactor.unixServers, [])
        ports.listen()
        self.assertEqual([server[0] for server in self.reactor.unixServers], ["/run/a", "/run/b"])
        self.assertEqual(len(ports.places), 3)

    def test_cannot_be_had(self) -> None:
        """Where it cannot be had, that is told with the reason; the others let in."""
        ports = self.make(("server.endpoints", '["unix:/run/a"]'))
        why = OSError(errno.EACCES, "Permission denied")

        def refuse(*args: object, **kwargs: object) -> None:
            raise CannotListenError(None, "/run/a", why)

        self.reactor.listenUNIX = refuse
        ports.listen()
        self.assertEqual(self.failures, ["server.endpoints: unix:/run/a: Permission denied"])
        self.assertTrue(ports.listening)

    def test_options(self) -> None:
        """What has a socket gets the options of the others."""
        ports = self.make(("server.endpoints", '["unix:/run/a"]'), ("socket.buffer_bytes", "4096"))
        listener, listen = FakeSocket(socket.AF_UNIX), self.reactor.listenUNIX

        def with_socket(*args: object, **kwargs: object) -> Any:
            port = listen(*args, **kwargs)
            port.socket = listener
            return port

        self.reactor.listenUNIX = with_socket
        ports.listen()
        self.assertEqual(listener.options, {"SO_RCVBUF": 4096, "SO_SNDBUF": 4096})


class HandedOverTests(PortsCase):
    """Sockets that a service manager has handed over, and that outlive the process."""

    def outlives(self, ports: Ports) -> list[bool]:
        """Of each place."""
        return [listener.outlives for listener, _ in ports._listeners]

    def test_taken_by_its_number(self) -> None:
        """A socket that is bound where a place is to be is taken for it; others are bound."""
        self.network.inherited.hand_over(9000)
        ports = self.make(("server.endpoints", '["tcp:9001:interface=127.0.0.1"]'))
        self.assertEqual((self.network.taken, self.outlives(ports)), ({9001}, [True, False]))
        ports.listen()
        self.assertEqual(ports.places, ["127.0.0.1:9000", "127.0.0.1:9001"])

    def test_opened_again(self) -> None:
        """Shut, it goes on to take connections, which wait; it can be opened again and again."""
        self.network.inherited.hand_over(9000)
        ports = self.make()
        for _ in range(3):
            came = self.network.connect(9000, Factory.forProtocol(Protocol))
            self.assertNoResult(came)
            ports.listen()
            self.successResultOf(came)
            ports.shut()
        self.assertEqual(self.failures, [])

    def test_refused(self) -> None:
        """Where phones are to go elsewhere connecting fails, until it is opened again."""
        self.network.inherited.hand_over(9000)
        ports = self.make()
        ports.listen()
        ports.refuse()
        refused = self.network.connect(9000, Factory.forProtocol(Protocol))
        self.failureResultOf(refused, ConnectionRefusedError)
        ports.listen()
        self.assertTrue(self.network.accepts(9000))

    def test_named_by_an_endpoint(self) -> None:
        """
        An endpoint of Twisted's that adopts a socket is opened as often as the others, and the
        socket is no other place's.
        """
        self.network.inherited.hand_over(9000)
        self.patch(ports_module, "descriptor_of", lambda made: None if made is None else 9000)
        self.patch(Endpoint, "made_by_twisted", lambda endpoint, reactor: endpoint)
        texts = '["haproxy:systemd:domain=INET:index=0"]'
        ports = self.make(("server.endpoints", texts))
        self.assertEqual((self.network.taken, self.outlives(ports)), ({9000}, [False, True]))
        self.assertIsInstance(ports._listeners[1][1], ProxyProtocolFactory)

    def test_connections_know(self) -> None:
        """A connection knows whether its port outlives the process."""
        for handed_over in (False, True):
            if handed_over:
                self.network.inherited.hand_over(9000)
            ports = self.make()
            ports.listen()
            self.network.connect(9000, Factory.forProtocol(Protocol))
            self.run_for(0.0)
            self.assertIs(self.conversation().peer.port_outlives, handed_over)
            ports.shut()


class CertificateTests(PortsCase):
    """Ports with TLS."""

    def test_none(self) -> None:
        """Without TLS there is no certificate to be looked at."""
        ports = self.make()
        ports.start()
        self.assertEqual((ports.health(), ports.certificate_ends), (None, 0.0))
        self.assertFalse(ports._checking.running)
        ports.stop()

    def test_places(self) -> None:
        """TLS has a port of its own, and more where endpoints say so, behind a balancer too."""
        file = self.certificate()
        more = [f"ssl:9444:privateKey={file}", f"haproxy:ssl:9445:privateKey={file}"]
        ports = self.make(
            ("tls.certificate", str(file)),
            ("tls.port", "9443"),
            ("server.endpoints", json.dumps(more)),
        )
        self.assertEqual(self.network.taken, {9000, 9443, 9444, 9445})
        kinds = [type(factory) for _, factory in ports._listeners]
        self.assertEqual(kinds[:3], [GatewayFactory, TLSFactory, TLSFactory])
        self.assertGreater(ports.certificate_ends, self.wall())
        self.assertIsNone(ports.health())

    def test_read_again(self) -> None:
        """Other files are found by looking; what cannot be used leaves all as it was."""
        file = self.certificate()
        ports = self.make(("tls.certificate", str(file)))
        ports.start()
        (before,) = ports._certificates
        shown = before._context
        self.authority.issue(file)
        self.reactor.advance(CHECK_SECONDS)
        self.assertIsNot(before._context, shown)
        self.assertFalse(ports.use_certificates(ports.load_certificates()))
        self.authority.issue(file)
        self.assertTrue(ports.use_certificates(ports.load_certificates()))
        file.write_text("no certificate")
        self.assertRaises(ConfigError, ports.load_certificates)
        ports.stop()
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_end(self) -> None:
        """A certificate that has ended is in the health, and in the log."""
        ports = self.make(("tls.certificate", str(self.certificate())))
        self.wall.step(ports.certificate_ends - self.wall() + 1.0)
        self.assertIn("it ended on", str(ports.health()))
        said: list[object] = []
        observer: Any = lambda event: said.append(event["error"])  # noqa: E731
        self.patch(Ports, "log", Logger(observer=observer))
        ports.start()
        ports.stop()
        self.assertEqual(said, [ports.health()])

    def test_look_that_fails(self) -> None:
        """A mistake of ours costs one look."""
        ports = self.make(("tls.certificate", str(self.certificate())))
        ports.start()
        self.patch(ports._certificates[0], "reload_if_changed", lambda: 1 // 0)
        self.reactor.advance(CHECK_SECONDS)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertTrue(ports._checking.running)
        ports.stop()


#: Names of options that are set, by level and number.
OPTIONS = {
    **{
        (socket.SOL_SOCKET, getattr(socket, name)): name
        for name in ("SO_REUSEADDR", "SO_REUSEPORT", "SO_KEEPALIVE", "SO_RCVBUF", "SO_SNDBUF")
    },
    **{
        (socket.IPPROTO_TCP, getattr(socket, name)): name
        for name in ("TCP_NODELAY", "TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_MAXSEG")
    },
    (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY): "IPV6_V6ONLY",
}


class FakeSocket:
    """
    A socket that remembers what it was asked for.

    @ivar options: those that were set, by name.
    @ivar bound: what was set when it was bound.
    """

    trouble: OSError | None = None

    def __init__(self, family: int, kind: int = socket.SOCK_STREAM) -> None:
        self.family = family
        self.options: dict[str, int] = {}
        self.calls: list[object] = []

    def setblocking(self, blocking: bool) -> None:
        self.calls.append(("blocking", blocking))

    def setsockopt(self, level: int, option: int, value: int) -> None:
        if option == 0xBAD:
            raise OSError(errno.ENOPROTOOPT, "Protocol not available")
        self.options[OPTIONS.get((level, option), str(option))] = value

    def bind(self, address: object) -> None:
        self.calls.append(("bind", address, dict(self.options)))
        if self.trouble is not None:
            raise self.trouble

    def listen(self, backlog: int) -> None:
        self.calls.append(("listen", backlog))

    def close(self) -> None:
        self.calls.append("close")

    def fileno(self) -> int:
        return 7

    def __enter__(self) -> "FakeSocket":
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


class ListenerTests(GatewayCase):
    """Tests for L{open_listener}, and what comes of it."""

    def setUp(self) -> None:
        super().setUp()
        self.sockets: list[FakeSocket] = []
        self.patch(socket, "socket", self.make)
        self.dual = True
        self.patch(socket, "has_dualstack_ipv6", lambda: self.dual)

    def make(self, family: int, kind: int) -> FakeSocket:
        """A new socket."""
        self.sockets.append(FakeSocket(family))
        return self.sockets[-1]

    def settings(self, **options: object) -> Settings:
        """Those of sockets."""
        chosen = [(f"socket.{name}", str(value).lower()) for name, value in options.items()]
        return load_settings(None, chosen, {})

    def open(self, interface: str, **options: object) -> FakeSocket:
        """A listener at port 9000."""
        open_listener(interface, 9000, self.settings(**options).socket, 5)
        return self.sockets[-1]

    def test_options_come_first(self) -> None:
        """All options are set before it is bound, for connections inherit them."""
        listener = self.open("127.0.0.1", reuse_port=True, buffer_bytes=4096)
        bind = ("bind", ("127.0.0.1", 9000), listener.options)
        self.assertEqual(listener.calls, [("blocking", False), bind, ("listen", 5)])
        for name in ("SO_REUSEADDR", "SO_REUSEPORT", "SO_KEEPALIVE", "TCP_NODELAY"):
            self.assertEqual(listener.options[name], 1)
        self.assertEqual(listener.options["SO_RCVBUF"], 4096)
        self.assertEqual(listener.options["TCP_MAXSEG"], 1220)
        self.assertIn("TCP_KEEPIDLE", listener.options)

    def test_only_what_is_wanted(self) -> None:
        """What is not wanted is not set."""
        listener = self.open("127.0.0.1", reuse_address=False, nodelay=False, buffer_bytes=0)
        self.assertEqual(listener.options["TCP_NODELAY"], 0)
        self.assertFalse({"SO_REUSEADDR", "SO_REUSEPORT", "SO_RCVBUF"} & listener.options.keys())

    def test_all_addresses(self) -> None:
        """Without an interface it is at all addresses: of IPv6 and IPv4 where there are both."""
        listener = self.open("")
        self.assertEqual((listener.family, listener.calls[1][1]), (socket.AF_INET6, ("::", 9000)))  # type: ignore[index]
        self.assertEqual(listener.options["IPV6_V6ONLY"], 0)
        self.dual = False
        self.assertEqual(self.open("").family, socket.AF_INET)

    def test_no_ipv6(self) -> None:
        """A kernel that knows IPv6, of which nothing is there, has IPv4."""
        self.patch(FakeSocket, "trouble", OSError(errno.EADDRNOTAVAIL, "no"))
        self.assertRaises(OSError, self.open, "")
        self.assertEqual([one.family for one in self.sockets], [socket.AF_INET6, socket.AF_INET])
        self.assertEqual(self.sockets[-1].calls[-1], "close")

    def test_unknown_option(self) -> None:
        """An option that the platform has by name only is left out."""
        self.patch(socket, "TCP_KEEPCNT", 0xBAD)
        self.patch(socket, "TCP_KEEPIDLE", None)
        listener: Any = FakeSocket(socket.AF_INET)
        set_socket_options(listener, self.settings().socket)
        self.assertIn("TCP_KEEPINTVL", listener.options)
        self.assertFalse({"TCP_KEEPIDLE", "TCP_KEEPCNT"} & listener.options.keys())

    def test_adopted(self) -> None:
        """The reactor has a socket of its own, and lets in a few in a turn."""
        reactor: Any = MemoryReactorClock()
        sockets = Sockets(reactor)
        listener: Any = sockets.bind("127.0.0.1", 9000, self.settings().socket, 5)
        sockets.listen(listener, self.factory)
        self.assertEqual(reactor.adoptedPorts, [(7, socket.AF_INET, self.factory)])
        self.assertEqual(listener.calls[-1], "close")
        port: Any = tcp.Port.__new__(tcp.Port)
        self.patch(reactor, "adoptStreamPort", lambda *args: port)
        sockets.listen(listener, self.factory)
        port.numberAccepts = 5_000  # as Twisted does
        self.assertEqual(port.numberAccepts, ACCEPTED_A_TURN)


class _HandedOver:
    """A socket that listens where it was bound by others."""

    def __init__(self, place: tuple[str, int] | None, kind: int = socket.SOCK_STREAM) -> None:
        self.place = place
        self.family = socket.AF_UNIX if place is None else socket.AF_INET6
        self.type = kind
        self.listens = True
        self.calls: list[object] = []

    def set_inheritable(self, inheritable: bool) -> None:
        self.calls.append(("inheritable", inheritable))

    def setblocking(self, blocking: bool) -> None:
        self.calls.append(("blocking", blocking))

    def getsockname(self) -> object:
        return "/run/a" if self.place is None else (*self.place, 0, 0)

    def getsockopt(self, level: int, option: int) -> int:
        return int(self.listens)

    def listen(self, backlog: int) -> None:
        self.listens = True
        self.calls.append(("listen", backlog))

    def shutdown(self, how: int) -> None:
        if not self.listens:
            raise OSError(errno.ENOTCONN, "not connected")
        self.listens = False

    def dup(self) -> object:
        return ("duplicate of", self)


class InheritedTests(GatewayCase):
    """Tests for L{InheritedSockets}."""

    def inherit(self, *handed_over: _HandedOver) -> InheritedSockets:
        """The descriptors are from 3 on."""
        reactor: Any = MemoryReactorClock()

        def made(reactor: object, text: str) -> AdoptedStreamServerEndpoint:
            index = int(text.rpartition("=")[2])
            if index >= len(handed_over):
                raise IndexError
            return AdoptedStreamServerEndpoint(reactor, 3 + index, socket.AF_INET)

        self.patch(inherited_module, "serverFromString", made)
        self.patch(socket, "socket", lambda fileno: handed_over[fileno - 3])
        return InheritedSockets(reactor)

    def test_none(self) -> None:
        """Where nobody handed over anything there is nothing."""
        reactor: Any = MemoryReactorClock()
        self.assertIsNone(InheritedSockets(reactor).at("", 9000))
        self.assertIsNone(descriptor_of(serverFromString(reactor, "tcp:1")))

    def test_by_its_place(self) -> None:
        """It is found by port and address; all addresses have several names."""
        everywhere, here = _HandedOver(("::", 9000)), _HandedOver(("127.0.0.1", 9001))
        datagrams = _HandedOver(("::", 9002), socket.SOCK_DGRAM)
        inherited = self.inherit(_HandedOver(None), everywhere, here, datagrams)
        for interface, port, descriptor in (
            *(("", 9000, 4), ("0.0.0.0", 9000, 4), ("::", 9000, 4), ("127.0.0.1", 9000, None)),
            *(("127.0.0.1", 9001, 5), ("", 9001, None), ("", 9002, None), ("", 0, None)),
        ):
            self.assertEqual(inherited.at(interface, port), descriptor, (interface, port))
        self.assertEqual(everywhere.calls, [("inheritable", False), ("blocking", False)])

    def test_claimed(self) -> None:
        """What an endpoint names is no other place's, nor another endpoint's."""
        inherited = self.inherit(_HandedOver(("::", 9000)), _HandedOver(None, socket.SOCK_DGRAM))
        inherited.claim("a", 3)
        self.assertIsNone(inherited.at("", 9000))
        for descriptor, why in (
            (3, "b: another endpoint has that socket"),
            (4, "b: that is no listening socket"),
            (9, "b: that is no listening socket"),
        ):
            error = self.assertRaises(ConfigError, inherited.claim, "b", descriptor)
            self.assertEqual(str(error), why)

    def test_opened(self) -> None:
        """A port has a duplicate; what was shut to all listens again, and only that."""
        listener, file = _HandedOver(("::", 9000)), _HandedOver(None)
        inherited = self.inherit(listener, file)
        self.assertEqual(inherited.open(3, 5), ("duplicate of", listener))
        self.assertNotIn(("listen", 5), listener.calls)
        inherited.refuse(3)
        inherited.refuse(3)
        inherited.refuse(4)  # of the file system: it could not be opened again
        self.assertEqual((listener.listens, file.listens), (False, True))
        inherited.open(3, 5)
        self.assertEqual((listener.listens, listener.calls[-1]), (True, ("listen", 5)))


class PlaceOfTests(GatewayCase):
    """Tests for L{place_of}."""

    def test_as_people_write_it(self) -> None:
        """Addresses, all addresses, and files."""

        class Port:
            def __init__(self, host: object) -> None:
                self.getHost = lambda: host

        for host, said in (
            (IPv6Address("TCP", "::", 9000), "port 9000 of all addresses"),
            (IPv6Address("TCP", "::1", 9000), "[::1]:9000"),
            (UNIXAddress(os.fsencode("/run/a")), "/run/a"),
            (UNIXAddress(None), str(UNIXAddress(None))),
        ):
            self.assertEqual(place_of(Port(host)), said)
