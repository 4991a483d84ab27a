"""Tests for L{domaeka.client}: the service, in virtual time against servers that behave."""

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from domaeka.client import (
    Client,
    ClientEvent,
    Connected,
    Credentials,
    Failed,
    Fate,
    Greeting,
    Identity,
    Lost,
    Media,
    Moved,
    Reply,
    Said,
    Server,
    Stopped,
    Waiting,
)
from domaeka.errors import CloseReason, ErrorCode
from domaeka.testing import FakeServer, FakeSessions, VirtualServer, run_clock
from domaeka.wire import Dialect, PhoneWriter, encode_frame, encode_reply
from tests.clocks import WallClock

KEY, SALT = "k" * 16, "salt"
NOW = 1_790_000_000.0
ONE, TWO = Server("one"), Server("two")


class ClientCase(SynchronousTestCase):
    """A client, and servers by name that share one store."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.wall = WallClock(self.clock, NOW)
        self.sessions = FakeSessions()
        self.servers: dict[Server, FakeServer] = {}
        self.ports: dict[Server, VirtualServer] = {}
        for server in (ONE, TWO):
            self.start(server)
        self.replies: list[str | Media] = []
        self.events: list[ClientEvent] = []

    def start(self, server: Server) -> None:
        """A process of C{server}, new or again."""
        self.servers[server] = FakeServer(
            self.clock,
            KEY,
            SALT,
            wall=self.wall,
            sessions=self.sessions,
            settings=[("limits.messages_per_second", "0")],
        )
        self.ports[server] = VirtualServer(self.clock, self.servers[server])

    def client(self, servers: Sequence[Server] = (ONE,), **options: Any) -> Client:
        def take(reply: Reply) -> None:
            self.replies.append(reply.content)

        client = Client(
            self.clock,
            servers,
            Identity(bot_name="가게봇", device_id="a1b2"),
            options.pop("credentials", Credentials(KEY, SALT)),
            take,
            self.events.append,
            endpoint=self.ports.__getitem__,  # type: ignore[arg-type]
            random=lambda: 0.5,
            wall=self.wall,
            **options,
        )
        client.startService()
        self.addCleanup(self.stop, client)
        return client

    def stop(self, client: Client) -> None:
        if client.running:
            stopped = client.stopService()
            run_clock(self.clock, 10.0)
            self.successResultOf(stopped)
        for fake in self.servers.values():
            fake.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        for fake in self.servers.values():
            fake.go_on()

    def say(self, client: Client, text: str) -> "Deferred[Fate]":
        return client.say(Said(room="방", sender="나", text=text))

    def run_for(self, seconds: float) -> None:
        run_clock(self.clock, seconds)

    def seen(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


class ExchangeTests(ClientCase):
    """The ordinary case."""

    def test_says_and_is_answered(self) -> None:
        """What is said before there is a connection is said once there is one."""
        client = self.client()
        fate = self.say(client, "안녕")
        self.run_for(1.0)
        self.assertEqual(self.replies, ["안녕"])
        self.assertEqual(self.successResultOf(fate), Fate.TAKEN)
        self.assertEqual(client.granted, {"session", "ack", "deflate", "delivery"})
        self.assertEqual([type(event) for event in self.events], [Connected, Greeting])

    def test_a_thousand_at_once(self) -> None:
        """A full queue is handed over as fast as the line takes it, in order."""
        client = self.client(capabilities=())
        fates = [self.say(client, f"{number} " + "가" * 500) for number in range(1000)]
        self.run_for(5.0)
        self.assertEqual([str(text).split()[0] for text in self.replies], [*map(str, range(1000))])
        self.assertEqual({self.successResultOf(fate) for fate in fates}, {Fate.WRITTEN})

    def test_nobody_there(self) -> None:
        """Without a server, a message is told to have expired after its time."""
        self.ports[ONE].open = False
        fate = self.say(self.client(), "안녕")
        self.run_for(29.0)
        self.assertNoResult(fate)
        self.run_for(2.0)
        self.assertEqual(self.successResultOf(fate), Fate.EXPIRED)
        self.assertGreater(len(self.seen(Failed)), 3)

    def test_reports(self) -> None:
        """The server hears, at once or later, whether each message was shown, and why not."""
        client = self.client()
        self.run_for(1.0)
        later: Deferred[object] = Deferred()
        shows = {"yes": None, "no": False, "later": later, "fails": fail(ValueError("x"))}
        client._on_reply = lambda reply: shows[str(reply.content)]
        told: list[tuple[str, str, str]] = []

        def tell(text: str) -> None:
            self.servers[ONE].send(
                text, on_status=lambda status, why: told.append((text, status, why))
            )

        for text in shows:
            tell(text)
        self.run_for(1.0)
        self.assertEqual(
            [entry for entry in told if entry[1] not in ("sent", "acknowledged")],
            [
                ("yes", "delivered", ""),
                ("no", "refused_by_app", "the app refused"),
                ("fails", "refused_by_app", "the app failed"),
            ],
        )
        self.flushLoggedErrors(ValueError)
        later.callback(True)  # is written, and lost
        self.ports[ONE].accepted[-1].abortConnection()
        self.run_for(5.0)
        self.assertEqual(told[-1], ("later", "delivered", ""))

    def test_listener_that_fails(self) -> None:
        """A mistake of the owner costs a line in the log, not the connection."""
        client = self.client()

        def fail_at(event: object) -> None:
            raise ZeroDivisionError

        client._on_reply = client._on_event = fail_at
        fate = self.say(client, "안녕")
        self.run_for(1.0)
        self.assertEqual(self.successResultOf(fate), Fate.TAKEN)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 3)


class ReturnTests(ClientCase):
    """Connections that end."""

    def test_comes_back(self) -> None:
        """After a cut, what had not arrived arrives, and nothing comes twice."""
        client = self.client()
        self.say(client, "하나")
        self.run_for(40.0)
        self.say(client, "둘")
        self.ports[ONE].accepted[-1].abortConnection()
        self.run_for(2.0)
        self.say(client, "셋")
        self.run_for(2.0)
        self.assertEqual(self.replies, ["하나", "둘", "셋"])
        self.assertEqual(len(self.servers[ONE].chats), 3)
        self.assertEqual(self.seen(Waiting), [Waiting(ONE, 1.5)])
        self.assertTrue(self.seen(Greeting)[1].resumed)

    def test_silent_server(self) -> None:
        """A server that takes connections and never greets is given up after ten seconds."""
        self.servers[ONE].greets = False
        self.client([ONE, TWO])
        self.run_for(12.0)
        self.assertEqual(self.seen(Lost), [Lost(ONE, CloseReason.HANDSHAKE_TIMEOUT)])
        self.assertEqual(self.seen(Connected)[-1].server, TWO)

    def test_dead_server(self) -> None:
        """A server that falls silent is noticed, and left."""
        self.client()
        self.run_for(1.0)
        self.servers[ONE].ping()
        self.servers[ONE].stop()
        self.run_for(74.0)
        self.assertEqual(self.seen(Lost), [])
        self.run_for(3.0)
        self.assertEqual(self.seen(Lost), [Lost(ONE, CloseReason.PING_TIMEOUT)])

    def test_not_acknowledged(self) -> None:
        """
        A server that is heard, but no longer reached, is left after fifteen seconds; what was said
        to it is said again, and arrives once.
        """
        client = self.client()
        self.run_for(40.0)
        self.say(client, "하나")
        self.run_for(1.0)
        self.ports[ONE].accepted[-1].pauseProducing()
        fate = self.say(client, "둘")
        self.say(client, "셋")
        self.run_for(5.0)
        self.servers[ONE].ping()
        self.run_for(9.0)
        self.assertEqual(self.seen(Lost), [])
        self.run_for(5.0)
        self.assertEqual(self.seen(Lost), [Lost(ONE, CloseReason.TOO_SLOW)])
        self.assertEqual(self.successResultOf(fate), Fate.TAKEN)
        self.run_for(60.0)
        self.assertEqual(self.replies, ["하나", "둘", "셋"])
        self.assertEqual(len(self.seen(Lost)), 1)

    def test_back_pressure(self) -> None:
        """
        A server that stops reading because its bots do not keep up is not left again and again;
        in the end everything is answered once.
        """
        self.servers[ONE].bots.hold = True
        client = self.client()
        texts = [f"{number} 가나다" for number in range(1800)]
        fates = [client.say(Said(room="방", sender="나", text=text), 3600.0) for text in texts]
        self.run_for(900.0)
        self.assertLess(len(self.servers[ONE].chats), 1200)
        self.assertLess(len(self.seen(Connected)), 25)  # 53 if each had 15 s
        connections = len(self.seen(Connected))
        self.servers[ONE].bots.hold = False
        for _ in range(60):
            self.servers[ONE].bots.release()
            self.run_for(1.0)
        self.assertEqual(self.replies, texts)
        self.assertEqual({self.successResultOf(fate) for fate in fates}, {Fate.TAKEN})
        self.assertLess(len(self.seen(Connected)) - connections, 2)

    def test_away_for_a_minute(self) -> None:
        """A server that is back is found within eight seconds, however long it was away."""
        client = self.client()
        self.run_for(40.0)
        self.ports[ONE].open = False
        self.ports[ONE].accepted[-1].abortConnection()
        self.run_for(600.0)
        self.assertEqual({waiting.delay for waiting in self.seen(Waiting)[2:]}, {4.0})
        self.ports[ONE].open = True
        self.run_for(5.0)
        self.assertTrue(client.greeted)

    def test_clock_set_back(self) -> None:
        """
        Where the reactor's time is the wall clock's, and that is set back, a server that falls
        silent is noticed all the same, once it has said anything more.
        """
        self.client()
        self.run_for(60.0)
        for _ in range(2):
            self.clock.rightNow -= 32_400.0
            self.run_for(10.0)
            self.servers[ONE].ping()
            self.run_for(1.0)
        self.assertEqual(self.seen(Lost), [])
        self.run_for(80.0)
        self.assertEqual(self.seen(Lost), [Lost(ONE, CloseReason.PING_TIMEOUT)])

    def test_clock_is_set(self) -> None:
        """Where it is not, no step of the clock is seen, but in what is signed."""
        client = self.client()
        self.run_for(60.0)
        for step in (-3600.0, 86_400.0):
            self.wall.step(step)
            self.run_for(90.0)
            fate = self.say(client, "안녕")
            self.run_for(1.0)
            self.assertEqual(self.successResultOf(fate), Fate.TAKEN)
        self.assertEqual((self.seen(Lost), len(self.seen(Connected))), ([], 1))

    def test_held_up(self) -> None:
        """A process that was held up does not take its own silence for the server's."""
        self.client()
        self.run_for(1.0)
        self.clock.advance(500.0)
        self.run_for(5.0)
        self.assertEqual(self.seen(Lost), [])

    def test_next_server_and_back(self) -> None:
        """The next server serves while the preferred one is away, and is left for it."""
        self.ports[ONE].open = False
        client = self.client([ONE, TWO])
        self.run_for(2.0)
        self.assertEqual((client.server, client.greeted), (TWO, True))
        self.run_for(300.0)
        self.assertEqual(client.server, TWO)
        self.ports[ONE].open = True
        self.run_for(300.0)
        self.assertEqual((client.server, client.greeted), (ONE, True))
        self.assertEqual(self.servers[TWO].received("migrated"), 1)
        self.assertEqual(self.seen(Lost), [])

    def test_stops_in_order(self) -> None:
        """A client that is stopped says so to whoever waits, and ends even if nobody reads."""
        client = self.client()
        self.run_for(1.0)
        self.ports[ONE].accepted[0].pauseProducing()
        fate = self.say(client, "가" * 60_000)
        self.stop(client)
        self.assertEqual(self.successResultOf(fate), Fate.STOPPED)

    def test_starts_again(self) -> None:
        """A client that was stopped can be started again."""
        client = self.client()
        self.run_for(1.0)
        self.stop(client)
        client.startService()
        self.say(client, "다시")
        self.run_for(1.0)
        self.assertEqual(self.replies, ["다시"])


class AnswerTests(ClientCase):
    """What servers say for good."""

    def test_taken_over(self) -> None:
        """A client whose place was taken is back twice, in 30 to 60 s: two phones have an end."""
        client = self.client()
        self.run_for(1.0)
        for times in (1, 2, 3):
            self.servers[ONE].end(ErrorCode.TAKEN_OVER)
            self.assertEqual(len(self.seen(Connected)), times)
            self.run_for(29.0)
            self.assertEqual(len(self.seen(Connected)), times)
            self.run_for(600.0 if times == 3 else 32.0)
        self.assertEqual(self.seen(Stopped), [Stopped(ErrorCode.TAKEN_OVER)])
        self.assertEqual(len(self.seen(Connected)), 3)
        self.stop(client)

    def test_taken_over_now_and_then(self) -> None:
        """A take-over long after the one before is the first one again."""
        client = self.client()
        self.run_for(1.0)
        for _ in range(5):
            self.run_for(600.0)
            self.servers[ONE].end(ErrorCode.TAKEN_OVER)
            self.run_for(61.0)
        self.assertEqual(self.seen(Stopped), [])
        self.assertTrue(client.greeted)
        self.stop(client)

    def test_token_that_was_seen(self) -> None:
        """Whoever saw the token, at another address and without the key, is not the phone."""
        client = self.client()
        self.run_for(1.0)
        (token,) = self.sessions.live
        thief = PhoneWriter(client.identity, None, self.wall)
        self.sessions.addresses[token] = "198.51.100.1"  # as if the client had been there
        seen: list[bytes] = []

        class Thief(Protocol):
            transport: Any

            def connectionMade(self) -> None:
                self.transport.write(
                    thief.handshake(capabilities=("session",), session_token=token)
                )

            def dataReceived(self, data: bytes) -> None:
                seen.append(data)

        self.ports[ONE].connect(Factory.forProtocol(Thief))
        self.run_for(1.0)
        self.assertNotIn(b"session_token", b"".join(seen))
        self.assertTrue(client.greeted)
        self.assertEqual(self.seen(Lost), [])
        self.stop(client)

    def test_burst_ahead_of_the_end(self) -> None:
        """All that a server says before it closes is shown, in more than one turn if need be."""
        client = self.client()
        self.run_for(1.0)
        texts = [f"{number}" for number in range(2_000)]
        replies = (Reply("방", None, "가게봇", text) for text in texts)
        burst = b"".join(encode_reply(reply, Dialect.V33, "") for reply in replies)
        self.servers[ONE].tell("message", burst, CloseReason.SHUTDOWN)
        self.run_for(1.0)
        self.assertEqual(self.replies, texts)
        self.stop(client)

    def test_unwanted(self) -> None:
        """Banned, not approved, not believed: it comes back, but much later."""
        for code in (ErrorCode.BANNED, ErrorCode.NOT_APPROVED, ErrorCode.AUTH_FAILED):
            self.setUp()
            self.servers[ONE].refuse(code)
            client = self.client()
            self.run_for(1.0)
            self.assertEqual(self.seen(Waiting), [Waiting(ONE, 225.0)])
            self.run_for(223.0)
            self.assertEqual(len(self.seen(Connected)), 1)
            self.servers[ONE].refuse(None)
            self.run_for(3.0)
            self.assertTrue(client.greeted)
            self.stop(client)

    def test_refused_for_now(self) -> None:
        """A server that is full, or closes without a word, is tried up to a minute later."""
        self.servers[ONE].refuse(ErrorCode.SERVER_FULL)
        client = self.client()
        self.run_for(300.0)
        delays = [waiting.delay for waiting in self.seen(Waiting)]
        self.assertEqual(delays[:7], [1.5, 3.0, 4.0, 8.0, 16.0, 30.0, 30.0])
        self.servers[ONE].refusal = b""
        self.run_for(300.0)
        self.assertEqual(self.seen(Waiting)[-1].delay, 30.0)
        self.servers[ONE].refuse(None)
        self.run_for(31.0)
        self.assertTrue(client.greeted)

    def test_unwanted_here(self) -> None:
        """Where one server will not have it, or is to be left alone, the next is tried at once."""
        self.servers[ONE].refuse(ErrorCode.BANNED)
        client = self.client([ONE, TWO])
        self.run_for(2.0)
        self.assertEqual((client.server, client.greeted), (TWO, True))
        self.servers[ONE].refuse(None)
        self.servers[TWO].shut_down(90.0)
        self.run_for(100.0)
        self.assertEqual((client.server, client.greeted), (TWO, True))
        self.assertEqual(len(self.seen(Connected)), 3)

    def test_greeted_with_a_refusal(self) -> None:
        """A server that greets it with a refusal is left, and the next is tried."""
        self.servers[ONE].refusal = encode_frame("handshakeComplete", {"success": False})
        client = self.client([ONE, TWO])
        self.run_for(2.0)
        self.assertEqual((client.server, client.greeted), (TWO, True))
        self.assertEqual(self.seen(Lost), [Lost(ONE, CloseReason.BAD_HANDSHAKE)])

    def test_wrong_key(self) -> None:
        """A client with another key is refused, and does not try on as if it were an attack."""
        self.client(credentials=Credentials("x" * 16, SALT))
        self.run_for(100.0)
        self.assertEqual(self.servers[ONE].received("handshake"), 1)

    def test_old_complaint(self) -> None:
        """What a server complained of long ago does not explain why a connection ends."""
        self.client()
        self.run_for(1.0)
        self.servers[ONE].end(ErrorCode.AUTH_FAILED, close=False)
        self.run_for(60.0)
        self.ports[ONE].accepted[-1].abortConnection()
        self.run_for(2.0)
        self.assertEqual(len(self.seen(Greeting)), 2)

    def test_shutdown(self) -> None:
        """Told to stay away, it does, and what is said meanwhile waits for its return."""
        client = self.client()
        self.run_for(1.0)
        self.servers[ONE].shut_down(80.0)
        fate = self.say(client, "기다림")
        self.run_for(79.0)
        self.assertNoResult(fate)
        self.assertEqual(len(self.seen(Connected)), 1)
        self.run_for(3.0)
        self.assertEqual(self.successResultOf(fate), Fate.TAKEN)

    def test_shutdown_called_off(self) -> None:
        """A server that says it closes, and does not, is spoken to again after that time."""
        client = self.client()
        self.run_for(1.0)
        self.servers[ONE].shut_down(10.0, close=False)
        self.run_for(0.1)
        fate = self.say(client, "기다림")
        self.run_for(5.0)
        self.assertNoResult(fate)
        self.run_for(7.0)
        self.assertEqual(self.successResultOf(fate), Fate.TAKEN)

    def test_told_that_a_shutdown_is_called_off(self) -> None:
        """A server that says that it need not stay away is spoken to at once."""
        client = self.client()
        self.run_for(1.0)
        self.servers[ONE].shut_down(80.0, close=False)
        self.run_for(0.1)
        fate = self.say(client, "기다림")
        self.run_for(5.0)
        self.assertNoResult(fate)
        self.servers[ONE].shut_down(0.0, close=False)
        self.run_for(0.1)
        self.assertEqual(self.successResultOf(fate), Fate.TAKEN)


class MigrationTests(ClientCase):
    """Migrations to another server."""

    def test_make_before_break(self) -> None:
        """It leaves the old server once the new one has greeted it, and says so."""
        client = self.client()
        self.say(client, "하나")
        self.run_for(1.0)
        self.servers[ONE].migrate("two", 9000, after=30.0)
        self.run_for(29.0)
        self.assertEqual(self.seen(Moved), [])
        for number in range(30):
            self.say(client, f"둘 {number}")
            self.run_for(0.1)
        self.assertEqual(self.seen(Moved), [Moved(TWO)])
        self.assertEqual(self.servers[ONE].received("migrated"), 1)
        self.assertEqual(self.servers[ONE].connections, 0)
        self.assertEqual(self.replies, ["하나", *(f"둘 {number}" for number in range(30))])
        self.assertEqual(self.seen(Lost), [])
        self.assertTrue(self.seen(Greeting)[1].resumed)

    def test_old_server_heard_out(self) -> None:
        """
        What the old server still answers arrives; chat waits for that, but not for long, and nor
        does the old connection.
        """
        self.servers[ONE].bots.hold = True
        client = self.client()
        self.run_for(1.0)
        self.say(client, "하나")
        self.say(client, "never answered")
        self.run_for(0.1)
        self.servers[ONE].migrate("two", 9000)
        self.run_for(2.0)
        self.assertEqual(self.servers[ONE].received("migrated"), 1)
        fate = self.say(client, "둘")
        self.run_for(3.0)
        self.assertNoResult(fate)
        self.run_for(2.0)
        self.assertEqual(self.successResultOf(fate), Fate.TAKEN)
        held = self.servers[ONE].bots.held
        late = held.pop()
        self.servers[ONE].bots.release()
        held.append(late)
        self.run_for(22.0)
        self.assertEqual(self.replies, ["둘", "하나"])
        self.assertEqual(self.servers[ONE].connections, 1)
        self.run_for(15.0)
        self.assertEqual((self.servers[ONE].connections, self.seen(Lost)), (0, []))

    def test_at_its_time(self) -> None:
        """It goes when it was told to, to the tenth of a second: servers spread their clients."""
        self.client()
        self.run_for(1.0)
        self.servers[ONE].migrate("two", 9000, after=10.4)
        self.run_for(10.3)
        self.assertEqual(len(self.seen(Connected)), 1)
        self.run_for(0.2)
        self.assertEqual(len(self.seen(Connected)), 2)

    def test_follows_only_what_it_may(self) -> None:
        """Without a signature, or after its time, a notice is not followed; a trusted host is."""
        client = self.client()
        self.run_for(1.0)
        self.servers[ONE].migrate("two", 9000, signed=False)
        self.servers[ONE].migrate("two", 9000, expires_in=-1.0)
        self.servers[ONE].migrate("two two", 9000)
        self.servers[ONE].migrate("two", 70_000)
        self.run_for(10.0)
        self.assertEqual(client.server, ONE)
        self.stop(client)
        trusting = self.client(trusted_hosts=["two"])
        self.run_for(1.0)
        self.servers[ONE].migrate("two", 9000, signed=False)
        self.run_for(10.0)
        self.assertEqual(trusting.server, TWO)

    def test_no_way_out_of_tls(self) -> None:
        """A notice that is not signed leads from a server with TLS only to one with TLS."""
        safe, elsewhere = Server("safe", 9000, tls=True), Server("two", 9000, tls=True)
        for server in (safe, elsewhere):
            self.start(server)
        client = self.client([safe], trusted_hosts=["two"])
        self.run_for(1.0)
        self.servers[safe].migrate("two", 9000, signed=False)
        self.run_for(5.0)
        self.assertEqual(client.server, elsewhere)

    def test_back_and_forth(self) -> None:
        """Two servers that send it to each other, again and again, do not keep it running."""
        self.client()
        for _ in range(600):
            self.servers[ONE].migrate("two", 9000)
            self.servers[TWO].migrate("one", 9000)
            self.run_for(0.1)
        self.assertIn(len(self.seen(Connected)), range(4, 9))

    def test_new_server_not_there(self) -> None:
        """While the new server does not answer, the old one serves; in the end it stays."""
        self.ports[TWO].open = False
        client = self.client()
        self.run_for(1.0)
        self.servers[ONE].migrate("two", 9000, expires_in=60.0)
        for number in range(5):
            self.run_for(30.0)
            self.say(client, str(number))
            self.run_for(1.0)
        self.assertEqual(self.replies, ["0", "1", "2", "3", "4"])
        self.assertEqual((client.server, self.seen(Lost)), (ONE, []))

    def test_old_server_gone_first(self) -> None:
        """When the old server ends before the new one has greeted, the new one is kept to."""
        self.servers[TWO].greets = False
        client = self.client()
        self.run_for(1.0)
        self.servers[ONE].migrate("two", 9000)
        self.run_for(5.0)
        self.ports[ONE].open = False
        self.ports[ONE].accepted[0].abortConnection()
        self.run_for(1.0)
        self.servers[TWO].greets = True
        self.run_for(20.0)
        self.assertEqual((client.server, client.greeted), (TWO, True))

    def test_sent_on_at_the_door(self) -> None:
        """A server that greets, sends on and closes is left at once for the one that it named."""
        client = self.client()
        self.run_for(1.0)
        self.servers[ONE].migrate("two", 9000)
        self.servers[ONE].shut_down(0.0)
        self.run_for(2.0)
        self.assertEqual((client.server, client.greeted), (TWO, True))
