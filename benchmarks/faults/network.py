"""
Hosts and the network between them: network namespaces, virtual cables, packet filters.

A process may have sockets in many namespaces at once: a socket stays where it was made.  So all
phones are in one process, whose thread is in another namespace only while it makes a socket.
"""

import ctypes
import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from twisted.internet import interfaces
from zope.interface import directlyProvides, implementer, providedBy

from benchmarks.servers import BenchmarkError

#: Begins the name of every namespace that is made here; the number of the process follows.
PREFIX: Final = "dk-"
#: In the environment of each process that is started here: the number of this one.
RUN_VARIABLE: Final = "FAULTS_RUN"
#: Longest that a command that sets something up may take, in seconds.
COMMAND_SECONDS: Final = 30.0
_NAMESPACES: Final = Path("/run/netns")
_TUN: Final = Path("/dev/net/tun")
#: Source: Linux, include/uapi/linux: sched.h, if_tun.h, netfilter/nfnetlink.h and
#: nfnetlink_conntrack.h.
_CLONE_NEWNET: Final = 0x40000000
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_NETLINK_NETFILTER: Final = 12
_CONNTRACK_DELETE: Final = 1 << 8 | 2
_NLM_F_REQUEST, _NLM_F_ACK, _NLMSG_ERROR = 1, 4, 2
#: Source: Linux, include/net/tcp_states.h.
_LISTEN: Final = "0A"
#: Where packets vanish (before routing, so that nobody is told), and where resets are sent.
_TABLE: Final = """
table inet dk {
  chain faults { type filter hook prerouting priority 0; }
  chain resets { type filter hook forward priority 0; }
}
"""
#: A router with one address for all behind it: packets without a flow vanish.
_NAT_TABLE: Final = """
table inet dk {
  chain nat { type nat hook postrouting priority 100; oifname "wan" masquerade; }
  chain strays { type filter hook forward priority 1; ct state invalid drop; }
  chain unasked { type filter hook input priority 0; iifname "wan" meta l4proto tcp drop; }
}
"""
#: Abilities of the kernel that all faults together need.
_TRIAL_RULES: Final = (
    "ip length > 1280 drop",
    "numgen random mod 100 < 10 drop",
    'iifname "lan" drop',
)

_libc = ctypes.CDLL(None, use_errno=True)


def _run(*command: str, text: str | None = None) -> None:
    try:
        run = subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BenchmarkError(f"{' '.join(command)}: no end within {COMMAND_SECONDS} s") from None
    if run.returncode:
        raise BenchmarkError(f"{' '.join(command)}: {run.stderr.strip() or run.returncode}")


def _set_namespace(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Namespace:
    """A network of its own: interfaces, addresses, routes, filters, sockets."""

    def __init__(self, name: str) -> None:
        """Make it."""
        self.name = name
        _run("ip", "netns", "add", name)
        self._descriptor = os.open(_NAMESPACES / name, os.O_RDONLY)
        self.ip("link set lo up")

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Have this thread make its sockets and processes in there meanwhile."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            _set_namespace(self._descriptor)
            try:
                yield
            finally:
                _set_namespace(home)
        finally:
            os.close(home)

    def ip(self, *lines: str) -> None:
        """Have C{ip} do something in there."""
        with self.entered():
            _run("ip", "-batch", "-", text="\n".join(lines))

    def nft(self, rules: str) -> None:
        """Have C{nft} do something in there, all at once or nothing."""
        with self.entered():
            _run("nft", "-f", "-", text=rules)

    def set(self, name: str, value: int) -> None:
        """Set a parameter of its kernel, such as C{ipv4.ip_forward}."""
        with self.entered():
            Path("/proc/sys/net", *name.split(".")).write_text(str(value))

    def forget_flows(self) -> None:
        """Its connection tracking forgets everything."""
        with (
            self.entered(),
            socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as link,
        ):
            flags = _NLM_F_REQUEST | _NLM_F_ACK
            header = struct.pack("=IHHII", 20, _CONNTRACK_DELETE, flags, 1, 0)
            link.settimeout(COMMAND_SECONDS)
            link.send(header + bytes(4))
            _, kind, _, _, _, error = struct.unpack_from("=IHHIIi", link.recv(4096))
        if kind != _NLMSG_ERROR or error:
            raise BenchmarkError(f"{self.name}: flows are not forgotten: {os.strerror(-error)}")

    def open_tun(self, device: str) -> int:
        """@return: the file of a new interface, whose packets are read and written there."""
        with self.entered():
            descriptor = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK)
            request = struct.pack("16sH22x", device.encode(), _IFF_TUN | _IFF_NO_PI)
            fcntl.ioctl(descriptor, _TUNSETIFF, request)
        return descriptor

    def remove(self) -> None:
        """Let it go; the kernel removes it as soon as nothing uses it any more."""
        os.close(self._descriptor)
        with suppress(BenchmarkError):
            _run("ip", "netns", "delete", self.name)


class World:
    """
    All that is made for a run: namespaces, processes, files.

    All of it goes with the C{with} statement; processes end with this one in any case.
    """

    def __init__(self) -> None:
        self._namespaces: list[Namespace] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._closing: list[Callable[[], object]] = []
        self._made = 0

    def __enter__(self) -> "World":
        remove_left_over()
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self._processes:
            end(process)
        for close in self._closing:
            close()
        for namespace in self._namespaces:
            namespace.remove()

    def namespace(self, what: str) -> Namespace:
        """@param what: for people who look at C{ip netns}."""
        self._made += 1
        namespace = Namespace(f"{PREFIX}{os.getpid()}-{what}{self._made}")
        self._namespaces.append(namespace)
        return namespace

    def discard(self, namespace: Namespace) -> None:
        """It is of no more use."""
        self._namespaces.remove(namespace)
        namespace.remove()

    def at_end(self, close: Callable[[], object]) -> None:
        """Have C{close} called before the namespaces go."""
        self._closing.append(close)

    def start(
        self,
        namespace: Namespace,
        command: Sequence[str],
        root: Path,
        output: int,
        files: Sequence[int] = (),
    ) -> "subprocess.Popen[bytes]":
        """
        Start a process in a namespace.

        @param output: the file for its output.
        @param files: others that it is given.
        """
        with namespace.entered():
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                cwd=root,
                env={**os.environ, "PYTHONPATH": str(root), RUN_VARIABLE: str(os.getpid())},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=files,
                start_new_session=True,  # control-C is for us
            )
        self._processes.append(process)
        return process


def end(process: "subprocess.Popen[bytes]") -> None:
    """Kill a process, stopped or not, and wait for its end."""
    process.kill()
    process.wait()


def remove_left_over() -> None:
    """Remove namespaces of processes that were killed before they could do so."""
    if not _NAMESPACES.is_dir():
        return
    for path in _NAMESPACES.glob(f"{PREFIX}*-*"):
        number = path.name.removeprefix(PREFIX).partition("-")[0]
        if number.isdigit() and not Path("/proc", number).exists():
            with suppress(BenchmarkError):
                _run("ip", "netns", "delete", path.name)


class Way:
    """
    The way between some phones and their server: a cable to a router, and one from there on.

    @ivar phones: the namespace with the phones, each of which has an address.
    @ivar host: the server's address.
    @ivar relay: stands in for the second cable, where there is one.
    """

    def __init__(self, world: World, number: int, phones: int, nat: bool) -> None:
        """
        @param number: of this way, 0 to 255.
        @param phones: 200 at most.
        @param nat: true if the router has but one address for them.
        """
        self._number = number
        self.host = f"10.2.{number}.2"
        self.addresses = [f"10.1.{number}.{10 + phone}" for phone in range(phones)]
        self.relay: Relay | None = None
        self.phones = world.namespace("p")
        self.router = world.namespace("r")
        one, other = f"10.3.{number}.2", f"10.3.{number}.1"
        cable(self.phones, "lan", one, self.router, "lan", other)
        self.phones.ip(
            *(f"addr add {address}/32 dev lo" for address in self.addresses),
            f"route add default via {other} src {self.addresses[0]}",
        )
        self.router.ip(f"route add 10.1.{number}.0/24 via {one}")
        self.router.set("ipv4.ip_forward", 1)
        self.router.nft(_TABLE + (_NAT_TABLE if nat else ""))

    def lead_to(self, server: Namespace) -> None:
        """Lay the second cable, to a server."""
        cable(self.router, "wan", self._outside, server, self.device, self.host)
        self._add_route(server)

    def lead_through(self, relay: "Relay", server: Namespace) -> None:
        """The same with a relay of ours in the place of the cable."""
        self.relay = relay
        relay.connect(self.router, "wan", server, self.device)
        self.router.ip("link set wan up", f"addr add {self._outside}/30 dev wan")
        server.ip(f"link set {self.device} up", f"addr add {self.host}/30 dev {self.device}")
        self._add_route(server)

    def _add_route(self, server: Namespace) -> None:
        server.ip(f"route add 10.1.{self._number}.0/24 via {self._outside}")

    @property
    def _outside(self) -> str:
        """The router's address on the server's side."""
        return f"10.2.{self._number}.1"

    @property
    def device(self) -> str:
        """The server's interface."""
        return f"w{self._number}"

    def tear(self) -> None:
        """Pull the second cable out and throw it away."""
        self.router.ip("link delete wan")

    def faults(self, *rules: str) -> None:
        """These rules, and no others, say which packets vanish, of both directions."""
        lines = ["flush chain inet dk faults", *(f"add rule inet dk faults {one}" for one in rules)]
        self.router.nft("\n".join(lines))

    def resets(self, on: bool) -> None:
        """Answer each packet that passes by a reset, or no longer do so."""
        rule = "add rule inet dk resets meta l4proto tcp reject with tcp reset" if on else ""
        self.router.nft(f"flush chain inet dk resets\n{rule}")

    def forget_flows(self, rebinds: bool) -> None:
        """
        The router forgets whose flow is whose.

        @param rebinds: flows that go on get another port; otherwise their packets vanish.
        """
        if rebinds:
            snat = f'oifname "wan" meta l4proto tcp snat ip to {self._outside}:20000-29999'
            self.router.nft(f"flush chain inet dk nat\nadd rule inet dk nat {snat}")
        self.router.set("netfilter.nf_conntrack_tcp_loose", int(rebinds))
        self.router.forget_flows()


def cable(
    one: Namespace,
    device: str,
    address: str,
    other: Namespace,
    other_device: str,
    other_address: str,
) -> None:
    """
    Connect two namespaces.

    Packets pass as they are on real cables, one segment each: those that TCP puts together for
    the interface would count as long ones.  Both ends know each other's hardware address for good:
    the kernel's table of those that it has asked for is one for all namespaces, and soon full.
    """
    _run(
        *("ip", "link", "add", "dev", device, "address", _hardware(address), "netns", one.name),
        *("type", "veth", "peer", "name", other_device, "address", _hardware(other_address)),
        *("netns", other.name),
    )
    ends = ((one, device, address, other_address), (other, other_device, other_address, address))
    for namespace, name, own, peer in ends:
        namespace.ip(
            f"link set {name} gso_max_segs 1 up",
            f"addr add {own}/30 dev {name}",
            f"neigh add {peer} lladdr {_hardware(peer)} dev {name} nud permanent",
        )


def _hardware(address: str) -> str:
    """A hardware address that no other interface here has."""
    return ":".join(("02", "00", *(f"{int(octet):02x}" for octet in address.split("."))))


@implementer(interfaces.IReadDescriptor)
class _End:
    """An end of a relay."""

    def __init__(self, relay: "Relay", descriptor: int) -> None:
        self._relay = relay
        self._descriptor = descriptor
        self.other: _End | None = None

    def fileno(self) -> int:
        return self._descriptor

    def logPrefix(self) -> str:
        return "relay"

    def doRead(self) -> None:
        with suppress(BlockingIOError):
            while True:
                packet = os.read(self._descriptor, 65_536)
                if self.other is not None:
                    self._relay.carry(self.other, packet)

    def connectionLost(self, reason: object) -> None:
        pass

    def write(self, packet: bytes) -> None:
        with suppress(OSError):  # the interface is down, or its queue full: a packet less
            os.write(self._descriptor, packet)


class Relay:
    """
    Carries packets between two namespaces, in order; for delays, which kernels without netem lack.

    @ivar delay: how long a packet takes, in seconds.
    """

    def __init__(self, reactor: Any) -> None:
        self.delay = 0.0
        self._reactor = reactor
        self._ends: list[_End] = []
        self._free_at = 0.0

    def connect(self, one: Namespace, device: str, other: Namespace, other_device: str) -> None:
        """Make the interfaces, and begin."""
        first, second = _End(self, one.open_tun(device)), _End(self, other.open_tun(other_device))
        first.other, second.other = second, first
        self._ends = [first, second]
        for each in self._ends:
            self._reactor.addReader(each)

    def carry(self, to: _End, packet: bytes) -> None:
        """A packet has come."""
        now = self._reactor.seconds()
        # Those that wait are not overtaken when the delay ends.
        self._free_at = max(self._free_at, now + self.delay)
        if self._free_at <= now:
            to.write(packet)
        else:
            self._reactor.callLater(self._free_at - now, to.write, packet)

    def close(self) -> None:
        """Take the interfaces away."""
        for each in self._ends:
            self._reactor.removeReader(each)
            os.close(each.fileno())
        self._ends = []


class ReactorIn:
    """A reactor whose TCP connections begin in a namespace, from a certain address."""

    def __init__(self, reactor: Any, namespace: Namespace, address: str) -> None:
        self._reactor = reactor
        self._namespace = namespace
        self._address = address
        directlyProvides(self, providedBy(reactor))

    def connectTCP(
        self, host: str, port: int, factory: Any, timeout: float = 30, bindAddress: Any = None
    ) -> Any:
        with self._namespace.entered():
            return self._reactor.connectTCP(host, port, factory, timeout, (self._address, 0))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)


def check_running(process: "subprocess.Popen[bytes]") -> None:
    """@raise BenchmarkError: a process has ended."""
    if process.poll() is not None:
        raise BenchmarkError(f"a server has ended with status {process.returncode}")


def listens(process: "subprocess.Popen[bytes]", port: int) -> bool:
    """
    Return True if a process in a namespace of its own listens on a TCP port.

    @raise BenchmarkError: it has ended.
    """
    check_running(process)
    wanted = f":{port:04X}"
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/{process.pid}/net/{name}").read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            if local.endswith(wanted) and state == _LISTEN:
                return True
    return False


def why_not() -> str | None:
    """In words, why nothing of this can be done here; L{None}: it can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    packages = {"ip": "iproute2", "nft": "nftables", "setpriv": "util-linux"}
    for program, package in packages.items():
        if not shutil.which(program):
            return f"there is no {program} (Debian: {package})"
    try:
        with World() as world:
            way = Way(world, 0, 1, nat=True)
            way.lead_to(world.namespace("s"))
            way.faults(*_TRIAL_RULES)
            way.resets(True)
            way.forget_flows(rebinds=True)
    except (BenchmarkError, OSError) as error:
        return f"this kernel, or this container, does not allow it: {error}"
    return None


def why_no_relay() -> str | None:
    """In words, why there can be no L{Relay} here; L{None}: there can."""
    return None if _TUN.exists() else f"there is no {_TUN}"
