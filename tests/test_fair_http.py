"""HTTP connections, streams of events and the log are shared: nobody keeps an operator out."""

from typing import Any

from twisted.internet.address import UNIXAddress
from twisted.logger import LogEvent, LogLevel, globalLogPublisher

from domaeka.gateway.transport.ports import ACCEPTED_A_TURN
from domaeka.interfaces import DeviceKey
from domaeka.pools import ALL_LINES_A_MINUTE, LINES_A_MINUTE, Pool
from domaeka.web.admission import (
    MAX_CONNECTIONS,
    MAX_OF_AN_ADDRESS,
    MAX_OF_THE_SOCKET,
    RESERVED,
    Stage,
)
from domaeka.web.api.endpoints import PREFIX
from domaeka.web.api.events import MAX_STREAMS
from domaeka.web.routes import Route
from domaeka.web.server import REQUEST_SECONDS, WRITE_SECONDS, Site
from domaeka.web.turns import REQUESTS_A_TURN
from tests.api_case import TOKEN, ApiCase, Client
from tests.clocks import WallClock
from tests.fairness import FairCase
from tests.gateway_case import KEY, GatewayCase
from tests.test_server import BEARER, Line, ServerTests

#: A request of a monitor, in one piece.
CHECK = b"GET /anywhere HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n"
#: A request that is never complete.
BEGINNING = b"GET /hello HTTP/1.1\r\nX-"


class ConnectionsTests(ServerTests, FairCase):
    """Connections that never finish a request, beside a monitor that wants its answer."""

    pools = (Pool.HTTP_CONNECTIONS,)

    def assert_monitored(self, host: str) -> None:
        """A monitor at C{host} connects, and is answered in the next turn of the reactor."""
        self.line = self.connect(host)
        self.assertEqual(self.ask(CHECK)[0], 200)
        self.assertFalse(self.line.closed)
        self.line.channel.connectionLost()

    def test_a_local_user_holds_all(self) -> None:
        """Somebody on this machine opens connections without end, and says half a request."""
        for _ in range(3 * MAX_CONNECTIONS):
            self.connect().channel.dataReceived(BEGINNING)
        self.assertEqual(len(self.site.channels), MAX_CONNECTIONS)
        self.assert_monitored("127.0.0.1")
        self.assert_monitored("192.0.2.7")
        self.assert_gave_way(self.metrics, Pool.HTTP_CONNECTIONS, 2 * MAX_CONNECTIONS)

    def test_a_few_addresses_hold_all(self) -> None:
        """Nine addresses take all they may have: the largest holders give way to others."""
        for number in range(9):
            for _ in range(2 * MAX_OF_AN_ADDRESS):
                self.connect(f"192.0.2.{number}").channel.dataReceived(BEGINNING)
        self.assert_monitored("198.51.100.1")
        self.assert_monitored("127.0.0.1")

    def test_many_addresses(self) -> None:
        """Each of a thousand addresses has one: the oldest gives way; none that is answered."""
        waiting = self.connect("198.51.100.1")
        waiting.channel.dataReceived(b"GET /pending HTTP/1.1\r\n" + BEARER + b"\r\n")
        self.clock.advance(0)
        mine = [self.connect() for _ in range(RESERVED - 1)]
        for number in range(1000):
            self.connect(f"203.0.{number >> 8}.{number & 255}").channel.dataReceived(BEGINNING)
        self.assert_monitored("198.51.100.2")
        self.assertFalse(waiting.closed)
        self.assertEqual([line.closed for line in mine], [False] * len(mine))
        self.pending.callback({"late": True})
        self.assertEqual(waiting.answer()[0], 200)

    def test_answers_that_are_not_read(self) -> None:
        """Who asks and does not read its answers gives way like who asks for nothing."""
        for _ in range(MAX_CONNECTIONS - 1):
            line = self.connect()
            line.channel.dataReceived(CHECK)
            self.clock.advance(0)
            line.channel.pauseProducing()
        self.assert_monitored("127.0.0.1")
        self.assert_monitored("127.0.0.1")
        self.assert_gave_way(self.metrics, Pool.HTTP_CONNECTIONS)
        self.clock.advance(WRITE_SECONDS)
        self.assertTrue(line.aborted)

    def test_requests_without_end(self) -> None:
        """All connections of this machine ask and read without end: a monitor is before them."""
        for _ in range(MAX_CONNECTIONS - 1):
            self.connect().channel.dataReceived(CHECK * 1000)
        for _ in range(3 * MAX_CONNECTIONS // REQUESTS_A_TURN):
            self.turn()
        stages = {channel.stage for channel in self.site.channels}
        self.assertEqual(stages, {Stage.UNFINISHED, Stage.AGAIN})
        for _ in range(3):
            self.line = self.connect()
            self.line.channel.dataReceived(CHECK)
            self.turn()
            self.assertEqual(self.line.answer()[0], 200)

    def test_more_is_served_than_comes(self) -> None:
        """New connections that ask at once never pile up: more are served than are accepted."""
        self.assertGreater(REQUESTS_A_TURN, ACCEPTED_A_TURN)

    def test_they_end(self) -> None:
        """Half a request holds a place no longer than a request may take."""
        line = self.connect("192.0.2.1")
        line.channel.dataReceived(BEGINNING)
        self.clock.advance(REQUEST_SECONDS)
        self.assertEqual(line.answer()[0], 408)

    def test_the_socket_is_apart(self) -> None:
        """The connections of the state directory's socket are no part of those of the port."""
        for _ in range(MAX_CONNECTIONS - 1):
            self.connect().channel.dataReceived(b"GET /pending HTTP/1.1\r\n" + BEARER + b"\r\n")
        local = Site(
            (Route("GET", "/hello", self.hello),),
            self.clock,
            self.metrics,
            most=MAX_OF_THE_SOCKET,
            wall=WallClock(self.clock, 1_790_000_000.0),
        )
        for _ in range(2 * MAX_OF_THE_SOCKET):
            channel = local.buildProtocol(UNIXAddress(None))
            assert channel is not None
            line = Line(channel)
            self.lines.append(line)
        line.channel.dataReceived(CHECK.replace(b"anywhere", b"hello"))
        self.clock.advance(0)
        self.assertEqual(line.answer()[0], 200)
        self.assertEqual(len(local.channels), MAX_OF_THE_SOCKET)

    def test_turns(self) -> None:
        """However many ask at once, a turn of the reactor serves a few; all have their turn."""
        lines = [self.connect() for _ in range(5 * REQUESTS_A_TURN)]
        for line in lines:
            line.channel.dataReceived(CHECK * 3)
        self.turn()
        self.assertEqual(sum(bool(line.transport.value()) for line in lines), REQUESTS_A_TURN)
        for _ in range(4):
            self.turn()
        self.assertTrue(all(line.transport.value().count(b"HTTP/1.1 200") == 1 for line in lines))


class StreamsTests(ApiCase, FairCase):
    """Streams of events, beside an operator who wants one."""

    pools = (Pool.EVENT_STREAMS,)

    def listen(self, host: str) -> Client:
        """Somebody at C{host} asks for events."""
        client = self.connect_client(host)
        client.request("GET", PREFIX + "/events", {"Authorization": f"Bearer {TOKEN}"})
        self.run_for(0.0)
        return client

    def test_the_largest_holder_gives_way(self) -> None:
        """One address has all streams: its oldest ends for another's; its own next is refused."""
        greedy = [self.listen("127.0.0.1") for _ in range(MAX_STREAMS)]
        self.assertIn(b" 503 ", self.listen("127.0.0.1").transport.value())
        operator = self.listen("192.0.2.1")
        self.assertIn(b" 200 ", operator.transport.value())
        ended = [client.transport.value().endswith(b"0\r\n\r\n") for client in greedy]
        self.assertEqual(ended, [True] + [False] * (MAX_STREAMS - 1))
        self.assert_gave_way(self.metrics, Pool.EVENT_STREAMS, 2)
        self.ready()
        self.run_for(0.0)
        self.assertIn(b"event: connected", operator.transport.value())

    def test_everybody_has_one(self) -> None:
        """Where nobody has more than another, nobody has to end."""
        held = [self.listen(f"192.0.2.{number}") for number in range(MAX_STREAMS)]
        self.assertIn(b" 503 ", self.listen("198.51.100.1").transport.value())
        self.assertFalse(any(each.transport.value().endswith(b"0\r\n\r\n") for each in held))


class LogTests(GatewayCase, FairCase):
    """A phone that comes and goes without end, beside one whose end is to be in the log."""

    pools = (Pool.LOG,)

    def test_lines_of_a_device(self) -> None:
        """A device has so many lines a minute; another one's are all there."""
        pools = self.metrics.pools
        now = 0.0
        shown = sum(pools.may_log(KEY, now + number / 100) for number in range(1000))
        self.assertEqual(shown, LINES_A_MINUTE)
        self.assertTrue(pools.may_log("innocent", 10.0))
        self.assertTrue(pools.may_log(KEY, 60.0))
        self.assert_gave_way(self.metrics, Pool.LOG, 1000 - LINES_A_MINUTE)

    def test_lines_of_all(self) -> None:
        """Names without end have a bound together, and so has the table of them."""
        pools = self.metrics.pools
        shown = sum(pools.may_log(f"device {number}", 1.0) for number in range(10_000))
        self.assertEqual(shown, ALL_LINES_A_MINUTE)

    def test_ends_of_connections(self) -> None:
        """The log of the gateway asks: a loop of one phone leaves the line of another."""
        for _ in range(2 * LINES_A_MINUTE):
            self.ready().drop()
        self.assert_gave_way(self.metrics, Pool.LOG, LINES_A_MINUTE)
        logged: list[LogEvent] = []
        observer: Any = logged.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        for key in (KEY, DeviceKey("봇", "innocent")):
            self.ready(key).drop()
        ends = [event for event in logged if "ended" in event.get("log_format", "")]
        levels = [event["log_level"] for event in ends]
        self.assertEqual(levels, [LogLevel.debug, LogLevel.info])
