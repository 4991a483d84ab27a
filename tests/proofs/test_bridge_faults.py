"""The bridge script with servers that refuse, mislead it, or mean harm."""

import base64
import gzip
import hashlib
import hmac
import re
import zlib
from typing import Any

from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from tests.integration.support import HOST, cpu_seconds, free_port, reactor, sleep
from tests.phone_host import PhoneHost, ScriptedPhone
from tests.phone_host.case import GIF, KEY, SALT, BridgeCase
from tests.phone_host.servers import FalseConnection, FalseServer, Relay
from tests.proofs import LONG

#: For so long a phone that waits is watched, in seconds, and the share of it that it may use of a
#: processor.
QUIET_SECONDS = 5.0
QUIET_SHARE = 0.06
#: Part of an address that is nobody's business.
TOKEN = "c0ffee-geheim"


class RefusalTests(BridgeCase):
    """Servers that refuse."""

    async def test_wrong_key(self) -> None:
        """With a wrong key the phone does not come back for minutes, and its log keeps secrets."""
        server = await self.serve()
        relay = Relay(self, server.port)
        phone = await self.host().phone(
            "p1", server, servers=self.behind(relay), config={"SECRET_KEY": "not the right key"}
        )
        await phone.until(lambda: phone.logged("AUTH_FAILED"))
        phone.say("# echo 비밀")
        await sleep(10.0)
        self.assertEqual(len(relay.accepted), 1)
        for secret in ("not the right key", server.secrets()["salt"], "비밀"):
            self.assertFalse(phone.logged(secret))

    async def test_full(self) -> None:
        """A phone that finds a server full comes back ever more slowly, until there is room."""
        server = await self.serve("--set", "server.max_connections=1")
        host = self.host()
        first = await host.phone("p1", server)
        await self.connected([first])
        relay = Relay(self, server.port)
        second = await host.phone("p2", server, servers=self.behind(relay))
        await second.until(lambda: second.logged("SERVER_FULL"))
        await sleep(5.0)
        self.assertLess(len(relay.accepted), 6)
        first.command("event", name="START_COMPILE")
        await self.connected([second])

    async def test_final(self) -> None:
        """After answers that are final the phone stays away; it takes the next of its list."""
        for code in ("BANNED", "NOT_APPROVED"):
            first, second = FalseServer(self), FalseServer(self)
            first.greeting = None
            first.received = lambda connection, *_: connection.refuse(code)  # noqa: B023
            phone = await self.host().boot("p1", self.settings(first, second))
            await self.connected([phone])
            self.assertEqual((len(first.accepted), len(second.accepted)), (1, 1))
            second.cut()
            await self.connected([phone], 2)
            self.assertEqual((len(first.accepted), len(second.accepted)), (1, 2))

    async def test_denied(self) -> None:
        """So it does after a greeting that is none."""
        first, second = FalseServer(self), FalseServer(self)
        first.greeting = {"success": False, "approved": False, "message": "x"}
        phone = await self.host().boot("p1", self.settings(first, second))
        await self.connected([phone])
        self.assertTrue(phone.logged("refuses this phone"))
        self.assertEqual((len(first.accepted), len(second.accepted)), (1, 1))

    async def test_taken_over(self) -> None:
        """A phone whose place is taken comes back after 30 to 60 s, twice; then it stops."""
        server = FalseServer(self)
        server.received = lambda connection, *_: connection.refuse("TAKEN_OVER")
        phone = await self.host().boot("p1", self.settings(server))
        await phone.until(lambda: phone.logged("took over; back in"))
        (pause,) = [int(n) for line in phone.log for n in re.findall(r"back in (\d+) s", line)]
        self.assertTrue(30 <= pause <= 60)
        if not LONG:
            return
        await phone.until(lambda: phone.logged("stopped until"), 180.0)
        self.assertEqual(len(server.accepted), 3)
        first, second, third = server.accepted
        self.assertTrue(all(30.0 <= gap <= 62.0 for gap in (second - first, third - second)))
        await sleep(70.0)
        self.assertEqual(len(server.accepted), 3)


class HostileTests(BridgeCase):
    """Servers that are broken, or mean harm."""

    async def test_notices(self) -> None:
        """A notice to move that is unsigned, expired, or signed for another place leads nowhere."""
        server, other = FalseServer(self), FalseServer(self)
        phone = await self.host().boot("p1", self.settings(server))
        await self.connected([phone])
        (connection,) = server.connections
        soon = int(reactor.seconds() * 1000) + 60_000

        def notice(port: int, expires: int, key: str = KEY, signed_port: int = 0) -> None:
            text = f"serverMigration|{HOST}|{signed_port or port}|false|{expires}|{SALT}"
            signature = hmac.new(key.encode(), text.encode(), "sha256").hexdigest()
            move = {"new_host": HOST, "new_port": port, "migrate_after": 0, "tls": False}
            connection.tell("serverMigration", {**move, "expires": expires, "signature": signature})

        notice(other.port, soon, "another key")
        notice(other.port, soon - 120_000)
        notice(other.port, soon, signed_port=server.port)
        for odd in ({}, {"new_host": 5}, {"new_host": "a b", "new_port": 1}, {"new_host": HOST}):
            connection.tell("serverMigration", odd)
        connection.tell("serverMigration", {"new_host": HOST, "new_port": other.port})
        await sleep(4.0)
        self.assertEqual((other.accepted, connection.open), ([], True))
        notice(other.port, soon)
        await phone.until(lambda: other.accepted)
        await phone.until(lambda: connection.of("migrated"))

    async def test_trusted_hosts(self) -> None:
        """An unsigned notice leads to a host that the phone trusts, and to no other."""
        server, other = FalseServer(self), FalseServer(self)
        settings = self.settings(server) | {"TRUSTED_HOSTS": [HOST]}
        phone = await self.host().boot("p1", settings)
        await self.connected([phone])
        (connection,) = server.connections
        connection.tell("serverMigration", {"new_host": "localhost", "new_port": other.port})
        await phone.until(lambda: phone.logged("not followed"))
        self.assertFalse(phone.logged("moving to"))
        for _ in range(500):
            connection.tell("serverMigration", {"new_host": HOST, "new_port": other.port})
        await phone.until(lambda: connection.of("migrated"))
        self.assertEqual(len(other.accepted), 1)
        self.assertLess(phone.logged("moving to"), 3)

    async def test_notices_in_a_row(self) -> None:
        """A second notice to move, or a lost place, costs no processor time while it waits."""
        server = FalseServer(self)
        settings = self.settings(server) | {"TRUSTED_HOSTS": [HOST]}
        host = self.host()
        phone = await host.boot("p1", settings)
        await self.connected([phone])
        (connection,) = server.connections
        move = {"new_host": HOST, "new_port": free_port(), "migrate_after": 0}
        connection.tell("serverMigration", move)
        await phone.until(lambda: phone.logged("moving to"))
        await sleep(4.0)
        connection.tell("serverMigration", move | {"new_port": free_port()})
        await sleep(4.0)
        await self.is_quiet(host)
        self.assertTrue(connection.open)

    async def test_place_lost_in_a_move(self) -> None:
        """So it is with a phone whose place is taken while it is about to move."""
        server = FalseServer(self)
        host = self.host()
        phone = await host.boot("p1", self.settings(server) | {"TRUSTED_HOSTS": [HOST]})
        await self.connected([phone])
        (connection,) = server.connections
        move = {"new_host": HOST, "new_port": free_port(), "migrate_after": 1}
        connection.tell("serverMigration", move)
        connection.refuse("TAKEN_OVER")
        await phone.until(lambda: phone.logged("took over; back in"))
        await sleep(5.0)
        await self.is_quiet(host)

    async def is_quiet(self, host: PhoneHost) -> None:
        """For some seconds a JVM uses hardly any processor time."""
        before = cpu_seconds(host.pid)
        await sleep(QUIET_SECONDS)
        used = cpu_seconds(host.pid) - before
        print(f"{used:.2f} s of processor time in {QUIET_SECONDS:.0f} s")
        self.assertLess(used, QUIET_SECONDS * QUIET_SHARE)

    async def test_pings(self) -> None:
        """A server that pings and reads no answer costs a connection, not the phone's memory."""
        server = FalseServer(self, "ack")
        phone = await self.host("app", "-Xmx128m").boot("p1", self.settings(server))
        await self.connected([phone])
        (connection,) = server.connections
        connection.transport.pauseProducing()
        for _ in range(2000):
            connection.tell("ping", {"bot_name": "가게봇", "server_timestamp": "t" * 60_000})
        await phone.until(lambda: phone.logged("disconnected from"))
        await self.connected([phone], 2)
        self.assertFalse(phone.logged("failed"))

    async def test_small_frames(self) -> None:
        """A server that takes no message fills no log."""
        server = FalseServer(self, "ack")
        assert server.greeting is not None
        server.greeting["max_frame_bytes"] = 1
        phone = await self.host().boot("p1", self.settings(server))
        await self.connected([phone])
        phone.say_all([phone.message(str(number)) for number in range(100)])
        await phone.until(lambda: phone.logged("too long for this server"))
        await sleep(1.0)
        self.assertLess(phone.logged("too long for this server"), 3)

    async def test_no_server(self) -> None:
        """A phone without a server tries again and again; its log says so once a minute."""
        port = free_port()
        settings = self.settings() | {"SERVER_LIST": [{"host": HOST, "port": port}]}
        phone = await self.host().boot("p1", settings)
        await phone.until(lambda: phone.logged("disconnected from"))
        await sleep(12.0)  # three tries or more
        self.assertEqual(phone.logged("disconnected from"), 1)
        FalseServer(self, port=port)
        await self.connected([phone])

    async def test_careless_settings(self) -> None:
        """Entries that are no servers are passed over; if none is left, the log says so, once."""
        server = FalseServer(self)
        host = self.host()
        right = self.settings(server)
        wrong: tuple[dict[str, Any], ...] = (
            {"SERVER_LIST": HOST},
            {"SERVER_LIST": [None, {}]},
            {"SECRET_KEY": None},
        )
        for number, change in enumerate(wrong):
            phone = await host.boot(f"p{number}", right | change)
            await phone.until(lambda: phone.logged("BOT_CONFIG needs"))  # noqa: B023
            await sleep(1.5)
            self.assertEqual(len(phone.log), 1, phone.log)
        servers = [None, {"host": "a b", "port": 1}, *right["SERVER_LIST"]]
        await self.connected([await host.boot("p3", right | {"SERVER_LIST": servers})])

    async def test_garbage(self) -> None:
        """What is no server for phones is left."""
        server = FalseServer(self)
        server.greeting = None
        server.received = lambda connection, event, data: connection.transport.write(
            b"HTTP/1.1 400 Bad Request\r\n\r\n"
        )
        phone = await self.host().boot("p1", self.settings(server))
        await phone.until(lambda: phone.logged("no server for phones"))
        server.received = lambda connection, event, data: connection.transport.write(b"[" * 60_000)
        await sleep(1.0)
        server.received = lambda *_: None
        server.greeting = {"success": True}
        await self.connected([phone])

    async def test_excess(self) -> None:
        """Bombs, endless lines, deep nesting and odd frames cost a connection at most."""
        server = FalseServer(self, "ack", "gzip")
        phone = await self.host("app", "-Xmx128m").boot("p1", self.settings(server))
        await self.connected([phone])
        connection = server.connections[-1]
        bomb = base64.b64encode(gzip.compress(bytes(50_000_000))).decode()
        bombs: dict[str, Any] = {"content_encoding": "gzip+base64", "content_length": 10}
        connection.reply("", message_id=1, tail=bomb, **bombs)
        connection.reply("", message_id=2, tail="!!!!", content_encoding="base64")
        odd: tuple[object, ...] = (None, [], "x", -1, 1e300, {"a": []}, True)
        for value in odd:
            for event in ("messageResponse", "ack", "ping", "serverShutdown", "handshakeComplete"):
                connection.tell(event, value)
            fields = ("message_id", "message_positions", "message_type", "room", "client_id")
            for field in (*fields, "channel_id", "media_wait_time", "server_timestamp"):
                for event in ("messageResponse", "ack"):
                    connection.tell(event, {"room": "방", "message_type": "text", field: value})
        connection.tell("ack", {"client_id": "never-said"})
        connection.tell("error", {"code": KEY, "message": KEY})
        deep = b'{"event":"x","data":' + b"[" * 30_000 + b"]" * 30_000 + b"}\n"
        connection.transport.write(b"\xff\xfe\n{}\n\n" + deep)
        connection.reply("아직 여기", message_id=3)
        await phone.until(lambda: phone.texts() == ["아직 여기"])
        self.assertTrue(connection.open)
        self.assertFalse(phone.logged(KEY))
        for piece in range(40):
            if connection.open:
                connection.transport.write(b"x" * 1_000_000)
                await sleep(0.02 + 0 * piece)
        await phone.until(lambda: not connection.open)
        await self.connected([phone], 2)
        server.connections[-1].reply("wieder", message_id=4)
        await phone.until(lambda: len(phone.texts()) == 2)

    async def test_deflate_bomb(self) -> None:
        """A stream that inflates to gigabytes is left."""
        server = FalseServer(self, "deflate")
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        bomb = b"".join(packer.compress(bytes(1_000_000)) for _ in range(1000)) + packer.flush()
        server.received = lambda connection, event, data: connection.transport.write(bomb)
        phone = await self.host("app", "-Xmx128m").boot("p1", self.settings(server))
        await phone.until(lambda: phone.logged("a line is too long"))
        server.received = lambda *_: None
        server.greeting = {"success": True}
        await self.connected([phone], 2)


class _Drip(Protocol):
    """Never comes to the end of its headers."""

    transport: Any

    def connectionMade(self) -> None:
        self.transport.write(b"HTTP/1.1 200 OK\r\nX-Drip: ")
        self._drips = LoopingCall(self.transport.write, b"x")
        self._drips.start(0.3)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._drips.stop()


class _Web(Resource):
    """
    Redirects, and bodies without an end.

    @ivar asked: the paths that were asked for.
    """

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def render_GET(self, request: Any) -> Any:
        path = request.path.decode().strip("/")
        self.asked.append(path)
        targets = {
            "moved": b"/again?token=" + TOKEN.encode(),
            "again": b"cat.gif",
            "loop": b"/loop?token=" + TOKEN.encode(),
            "file": b"file:///etc/passwd",
            "jar": b"jar:file:///etc/passwd!/x",
            "odd": b"://" + TOKEN.encode(),
            "to-huge": b"/huge",
        }
        if path in targets:
            request.setResponseCode(302)
            request.setHeader(b"Location", targets[path])
            return b"<html>moved</html>"
        if path == "huge":
            request.setHeader(b"Content-Type", b"image/png")
            self._more(request, 200)
            return NOT_DONE_YET
        if path == "cat.gif":
            return GIF
        request.setResponseCode(404)
        return b"<html>none</html>"

    def _more(self, request: Any, left: int) -> None:
        if request.channel is not None and left:
            request.write(bytes(1_000_000))
            reactor.callLater(0.01, self._more, request, left - 1)


class DownloadTests(BridgeCase):
    """Files that the phone fetches."""

    async def fetched(self, connection: FalseConnection, phone: ScriptedPhone, url: str) -> bool:
        """Have an address fetched, and return True if it was a picture."""
        known = len(connection.of("delivery"))
        connection.reply("", message_id=known, tail=url, message_type="image", media_wait_time=1)
        await phone.until(lambda: len(connection.of("delivery")) > known)
        return bool(connection.of("delivery")[-1]["ok"])

    async def test_redirects(self) -> None:
        """
        Redirects are followed a few times, within the web.  Pages that are no files, loops and
        bodies without an end are refused, and no address is in the log.
        """
        web = _Web()
        site = reactor.listenTCP(0, Site(web), interface=HOST)
        self.addCleanup(site.stopListening)
        server = FalseServer(self, "ack", "delivery")
        phone = await self.host("app", "-Xmx128m").boot("p1", self.settings(server))
        await self.connected([phone])
        (connection,) = server.connections
        base = f"http://{HOST}:{site.getHost().port}"
        self.assertTrue(await self.fetched(connection, phone, f"{base}/moved"))
        self.assertEqual(web.asked, ["moved", "again", "cat.gif"])
        (share,) = phone.of("share")
        self.assertEqual(share["files"][0]["sha256"], hashlib.sha256(GIF).hexdigest())
        for path in ("loop", "file", "jar", "odd", "none", "huge", "to-huge"):
            url = f"{base}/{path}?token={TOKEN}"
            self.assertFalse(await self.fetched(connection, phone, url), path)
        self.assertLess(web.asked.count("loop"), 10)
        self.assertEqual(len(phone.of("share")), 1)
        self.assertTrue(phone.logged("too many redirects"))
        self.assertFalse(phone.logged(TOKEN))
        self.assertTrue(await self.fetched(connection, phone, f"{base}/cat.gif"))

    async def test_endless_headers(self) -> None:
        """
        An answer whose headers never end is given up, and a script that is compiled anew
        leaves no thread with one behind.
        """
        factory = Factory.forProtocol(_Drip)
        factory.noisy = False
        site = reactor.listenTCP(0, factory, interface=HOST)
        self.addCleanup(site.stopListening)
        server = FalseServer(self, "ack", "delivery")
        settings = self.settings(server)
        host = self.host()
        phone = await host.boot("p1", settings, script=self.hurried(DOWNLOAD_TIMEOUT=1500))
        await self.connected([phone])
        url = f"http://{HOST}:{site.getHost().port}/x.png"
        self.assertFalse(await self.fetched(server.connections[0], phone, url))
        other = await host.boot("p2", self.settings(server))
        await self.connected([other])
        server.connections[1].reply("", message_id=1, tail=url, message_type="image")
        await sleep(2.0)
        self.assertEqual((await self.threads(phone)).count("media"), 2)
        for each in (phone, other):
            each.command("event", name="START_COMPILE")
            await each.until(lambda: each.logged("bridge stops"))  # noqa: B023
        await sleep(6.0)
        self.assertEqual(await self.threads(phone), [])
