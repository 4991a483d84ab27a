"""Tests for L{domaeka.server.service}: whole servers start and stop."""

import re
import signal
import sys
from io import StringIO
from typing import Any
from urllib.parse import quote

from msgspec.structs import replace
from twisted.internet.defer import fail
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger

from domaeka.errors import CloseReason, StoreError
from domaeka.gateway.directory.admission import GUESTS_CROWDED
from domaeka.gateway.directory.sweep import LIMITS_SECONDS
from domaeka.gateway.lifecycle.drain import LAST_SECONDS
from domaeka.gateway.serving import ServerState
from domaeka.interfaces import Approval, DeviceKey
from domaeka.policies.records import Records
from domaeka.server import GatewayService
from domaeka.server.service import STORE_SECONDS
from domaeka.server.signals import ECHO_SECONDS
from domaeka.state import lock_directory
from domaeka.store.background import FLUSH_SECONDS
from domaeka.store.bans import StoredBans
from domaeka.store.database import STOP_SECONDS
from domaeka.store.devices import HEARD_SECONDS
from domaeka.store.outboxes import StoredOutboxes
from tests.server_case import BOT, ServerCase


class StartTests(ServerCase):
    """From the first port to the first phone."""

    def test_first_phone(self) -> None:
        """A server that has started serves a phone, and says where it does, in one line."""
        self.server.start()
        phone = self.server.phone()
        phone.say("# echo 안녕")
        self.run_for(0.1)
        self.assertEqual((phone.texts(), self.server.health()), (["안녕"], "ready"))
        self.assertEqual(self.logged("serves: no settings file, state directory"), 1)
        self.assertEqual(self.logged("phones on 127.0.0.1:9000, HTTP on 127.0.0.1:8999"), 1)

    def test_made_but_not_started(self) -> None:
        """Its ports are its own as soon as it is made, and nobody is let in before its start."""
        self.server.make()
        self.assertEqual(self.network.taken, {8999, 9000})
        self.assertFalse(self.network.accepts(9000) or self.network.accepts(8999))

    def test_store_that_is_late(self) -> None:
        """Phones wait for the store; no longer than 5 s, for those that are known are served."""
        for seconds in (2.0, 2 * STORE_SECONDS):
            self.server.threads.stuck = True
            self.server.start()
            self.assertEqual(
                (self.network.accepts(9000), self.network.accepts(8999)), (False, True)
            )
            self.assertEqual(self.server.health(), "not listening")
            self.run_for(seconds)
            self.assertEqual(self.network.accepts(9000), seconds > STORE_SECONDS)
            self.server.threads.go_on()
            self.run_for(0.0)
            self.assertEqual(self.server.health(), "ready")
            self.server.stop()
            self.assertTrue(self.server.is_over())
        self.assertEqual(self.logged("serves: "), 2)

    def test_chat_before_the_store_is_read(self) -> None:
        """
        What phones say before the store has been read is answered once it has, in order; those that
        an operator has refused are not, and new phones are kept away meanwhile.
        """
        self.server.start()
        known, blocked = self.server.phone(1), self.server.phone(2)
        path = f"/api/v1/devices/{quote(BOT)}/{blocked.identity.device_id}"
        self.assertEqual(self.server.ask("PATCH", path, {"status": "blocked"}).status, 200)
        self.server.stop()
        self.run_for(5.0)
        self.server.threads.stuck = True
        self.server.start()
        self.run_for(STORE_SECONDS + 70.0)  # phones have been back for some time
        for phone in (known, blocked):
            phone.say("# echo 하나")
        known.say("# echo 둘")
        self.run_for(60.0)
        self.assertEqual((known.texts(), blocked.texts()), ([], []))
        self.assertEqual(self.server.health(), "not ready: the store has not been read yet")
        self.assertEqual(self.server.ask("GET", "/health").status, 200)
        self.server.threads.go_on()
        self.run_for(1.0)
        known.say("# echo 셋")
        self.run_for(0.1)
        self.assertEqual((known.texts(), blocked.texts()), (["하나", "둘", "셋"], []))
        self.assertEqual(self.server.health(), "ready")
        new = self.server.phone(3)
        new.say("# echo 새로")
        self.run_for(0.1)
        self.assertEqual(new.texts(), ["새로"])

    def test_phone_that_left_before_the_store_was_read(self) -> None:
        """Its answer waits for it."""
        self.server.threads.stuck = True
        self.server.start()
        self.run_for(STORE_SECONDS)
        phone = self.server.phone()
        phone.say("# echo 하나")
        self.run_for(0.1)
        phone.drop()
        self.run_for(0.1)
        self.server.threads.go_on()
        self.run_for(10.0)
        self.assertEqual(phone.texts(), ["하나"])

    def test_what_cannot_be_read_back(self) -> None:
        """What the store does not give back is told, and keeps nobody out."""
        self.server.make()
        self.patch(StoredBans, "load", lambda bans: fail(StoreError("no such table")))
        self.patch(StoredOutboxes, "load", lambda outboxes: fail(ZeroDivisionError()))
        self.server.service.startService()
        self.assertEqual(self.server.health(), "ready")
        self.assertEqual(self.logged("the store: no such table"), 1)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_store_that_fails(self) -> None:
        """What is no database ends the process, with one line and a status that is not 0."""
        (self.server.state / "domaeka.db").write_text("no database")
        self.patch(sys, "__stderr__", StringIO())
        self.server.start()
        said = sys.__stderr__.getvalue()  # type: ignore[union-attr]
        self.assertRegex(said, "^domaeka: cannot open the store sqlite:///.*: file is not a data")
        self.assertEqual((len(said.splitlines()), [call[1:] for call in self.exits]), (1, [(1,)]))
        self.assertTrue(self.server.is_over())
        self.assertEqual(self.logged("serves: "), 0)

    def test_stores_address(self) -> None:
        """Where the store is one of the settings, the line says which."""
        (self.server.state / "x.db").write_text("no database")
        self.server.settings.append(("storage.url", f"sqlite:///{self.server.state}/x.db"))
        self.patch(sys, "__stderr__", StringIO())
        self.server.start()
        said = sys.__stderr__.getvalue()  # type: ignore[union-attr]
        self.assertRegex(said, "^domaeka: command line: storage.url: cannot open the store")

    def test_warnings(self) -> None:
        """What the operator is to be told is logged: of the start, and of the keys."""
        self.server.warnings.append("no locks")
        self.server.make()
        self.patch(self.server.parts.keys, "health", lambda: "everybody knows it")
        # Trial takes what has this field for a warning of Python's.
        said: list[object] = []
        observer: Any = lambda event: said.append(event.get("warning"))  # noqa: E731
        self.patch(GatewayService, "log", Logger(observer=observer))
        self.server.service.startService()
        self.assertEqual(said[:2], ["no locks", "everybody knows it"])

    def test_previous_key(self) -> None:
        """A previous key whose time is over is told, once it can be removed."""
        self.server.start()
        self.server.stop()
        with (self.server.state / "secrets.toml").open("a") as file:
            file.write('previous_secret_key = "another of enough bytes"\n')
            file.write("previous_valid_until = 1.0\n")
        self.server.start()
        self.assertEqual(self.logged("the previous key has ended"), 1)


class WrongClockTests(ServerCase):
    """The clock of the server's machine is an hour off."""

    def setUp(self) -> None:
        super().setUp()
        self.server.start()
        self.phones = [self.server.phone(number) for number in range(5)]

    def found(self) -> tuple[int, str, int]:
        """The status of C{/health}, what its check of the clock says, and that of readiness."""
        exchange = self.server.ask("GET", "/health")
        ready = self.server.ask("GET", "/health/ready")
        return exchange.status, exchange.body["checks"]["clock"], ready.status

    def offset(self) -> str:
        """As Prometheus is told."""
        text = self.server.ask("GET", "/metrics").text
        (found,) = re.findall(r"^domaeka_clock_offset_seconds (\S+)$", text, re.M)
        return str(found)

    def test_found_and_over(self) -> None:
        """It is shown while chat is refused, is no reason to move phones, and ends by itself."""
        for step, side in ((3600.0, "ahead"), (-3600.0, "behind")):
            self.assertEqual((self.found(), self.offset()), ((200, "ok", 200), "0.0"))
            self.wall.step(step)
            self.run_for(60.0)
            status, found, ready = self.found()
            self.assertEqual((status, ready, float(self.offset())), (200, 200, step))
            self.assertIn(f"this server's clock is 3600 s {side}, by the signatures of 5", found)
            self.assertEqual(self.logged(f"clock is 3600 s {side}"), 1)
            self.phones[0].say("# echo 하나")
            self.run_for(0.1)
            self.assertEqual(self.phones[0].texts(), [])
            self.wall.step(-step)
            self.assertEqual((self.found(), self.offset()), ((200, "ok", 200), "0.0"))
            self.run_for(60.0)
            self.assertEqual(self.found(), (200, "ok", 200))
        self.assertEqual(self.logged("clock is right again"), 2)
        self.phones[0].say("# echo 둘")
        self.run_for(0.1)
        self.assertEqual(self.phones[0].texts(), ["둘"])

    def test_from_the_start(self) -> None:
        """A server that starts with a wrong clock finds it by the first phones."""
        self.server.stop()
        self.run_for(10.0)
        self.wall.step(-86_400.0)
        self.server.start()
        self.run_for(90.0)
        self.assertIn("86400 s behind, by the signatures of 5 of 5 phones", self.found()[1])

    def test_phones_are_wrong(self) -> None:
        """Two phones of five whose clocks are set wrong alike do not set it off."""
        for phone in self.phones[:2]:
            phone.set_clock(self.wall.ahead + 3600.0)
        self.run_for(120.0)
        self.assertEqual(self.found(), (200, "ok", 200))

    def test_strangers(self) -> None:
        """Who has no key does not, whatever the time that is signed."""
        secret = self.server.secrets.secret_key
        self.server.secrets = replace(self.server.secrets, secret_key="x" * 32)
        for number in range(10, 20):
            self.server.phone(number).set_clock(self.wall.ahead + 3600.0)
        self.server.secrets = replace(self.server.secrets, secret_key=secret)
        self.run_for(60.0)
        self.assertEqual(self.found(), (200, "ok", 200))


class ReturnTests(ServerCase):
    """Many phones behind one address come back."""

    PHONES = 100

    def setUp(self) -> None:
        super().setUp()
        self.server.settings += [
            ("limits.allow", "[]"),
            ("server.max_connections", str(2 * self.PHONES)),
            ("bots.bot_concurrency", "100"),
        ]
        self.server.start()
        devices = self.server.parts.stores.devices
        for number in range(self.PHONES):  # more than an address may bring at once
            key = DeviceKey(BOT, f"{number:016x}")
            devices.set_approval(key, Approval.APPROVED)
        self.phones = [self.server.phone(number) for number in range(self.PHONES)]
        self.lines = 0

    def stop(self) -> None:
        """Stop the server, and wait until it has ended."""
        self.server.stop()
        while not self.server.is_over():
            self.run_for(0.1)

    def talk(self, seconds: int) -> None:
        """Somebody writes on each phone, once a second, in a room of its own."""
        for _ in range(seconds):
            for number, phone in enumerate(self.phones):
                phone.say(f"# echo {self.lines}", room=f"방 {number}", channel_id=str(number))
            self.lines += 1
            self.run_for(1.0)

    def refusals(self) -> dict[str, float]:
        """Who was turned away, and why, since the last start."""
        family = self.server.parts.context.metrics.refusals
        return {reason: child.value for reason, child in family.items() if child.value}

    def strangers(self, count: int) -> int:
        """That many connect from the same address.  @return: how many are let in."""
        before = self.refusals().get("rate limited", 0)
        factory = Factory.forProtocol(Protocol)
        factory.noisy = False
        for _ in range(count):
            self.network.connect(9000, factory).addErrback(lambda failure: None)
        return int(count - (self.refusals().get("rate limited", 0) - before))

    def test_restart(self) -> None:
        """After a restart all are back at their first try, and everything said is answered."""
        self.talk(3)
        for member in self.server.parts.connections.registry:
            member.close(CloseReason.SHUTDOWN, cut=True)
        self.stop()
        self.talk(2)
        self.server.start()
        self.talk(8)
        self.run_for(2.0)
        self.assertEqual(self.refusals(), {})
        for phone in self.phones:
            self.assertEqual(phone.texts(), [str(number) for number in range(self.lines)])
            self.assertEqual(len(phone.record.connects), 2)

    def test_lines_that_all_break(self) -> None:
        """They are back as soon where the server takes their old connections for alive."""
        self.stop()
        self.server.start()
        self.network.lose_cuts(9000)
        self.talk(6)
        for phone in self.phones:
            phone.drop()
        self.run_for(0.1)
        self.talk(5)
        self.run_for(2.0)
        self.assertEqual(self.refusals(), {})
        for phone in self.phones:
            self.assertEqual(phone.texts(), [str(number) for number in range(self.lines)])

    def test_connected_for_long(self) -> None:
        """Phones that stay connected, and say nothing, are known to be there, too."""
        self.run_for(2 * HEARD_SECONDS)
        known = self.server.parts.stores.devices.page(None, self.PHONES)
        self.assertEqual(len(known), self.PHONES)
        oldest = min(record.last_seen or 0.0 for record in known)
        self.assertGreater(oldest, self.wall() - HEARD_SECONDS - LIMITS_SECONDS - 60.0)

    def test_stranger_among_them(self) -> None:
        """A stranger at their address is limited, and costs no phone its place."""
        self.assertLessEqual(self.strangers(500), self.PHONES + 10 + GUESTS_CROWDED)
        self.talk(3)
        for phone in self.phones:
            self.assertEqual((len(phone.texts()), len(phone.record.connects)), (3, 1))


class StopCase(ServerCase):
    """A server that is to be stopped."""

    def leave_outbox(self) -> None:
        """Start it, and have something wait for a phone that is away."""
        self.server.start()
        phone = self.server.phone()
        phone.say("# echo 처음")
        self.run_for(0.1)
        phone.stop()
        self.run_for(1.0)
        message = {"device": phone.identity.device_id, "room": "테스트방", "text": "기다림"}
        exchange = self.server.ask("POST", "/api/v1/messages", {"bot": BOT, "ttl": 600, **message})
        self.assertEqual(exchange.status, 202)

    def change_records(self) -> None:
        """Have durable delivery take something that the store does not take any more."""
        self.server.start()
        journal = self.server.parts.context.journal
        assert journal is not None
        self.server.parts.stores.database._open = False
        Records(journal, 1, (BOT, "a1"), "epoch", 1).knew("id")

    def hold(self) -> None:
        """Start it, and have a phone ask for what takes long, so that a stop waits for it."""
        self.server.settings.append(("shutdown.drain_timeout", "3600"))
        self.server.start()
        self.phone = self.server.phone()
        self.phone.say("# slow")
        self.run_for(0.1)


class StopTests(StopCase):
    """To the end of the process."""

    def test_nothing_is_left(self) -> None:
        """After the stop nothing is to be called, the ports are free, the lock is let go of."""
        self.server.start()
        self.server.stop()
        self.successResultOf(self.server.stopped)
        self.assertTrue(self.server.is_over() and self.server.threads.closed)
        self.assertTrue(self.server.bots_threads.closed)
        self.assertEqual((self.clock.getDelayedCalls(), self.network.taken), ([], set()))
        lock = lock_directory(self.server.state)
        assert lock is not None
        lock.close()

    def test_mail_is_kept(self) -> None:
        """What waits for a phone that is away is there after a restart on the same store."""
        self.server.start()
        phone = self.server.phone()
        phone.say("# echo 처음")
        self.run_for(0.1)
        phone.stop()
        self.run_for(1.0)
        message = {
            "bot": BOT,
            "device": phone.identity.device_id,
            "room": "테스트방",
            "text": "기다림",
            "ttl": 600,
        }
        self.assertEqual(self.server.ask("POST", "/api/v1/messages", message).status, 202)
        self.server.stop()
        self.assertTrue(self.server.is_over())
        self.server.start()
        back = self.server.phone()
        self.run_for(1.0)
        self.assertEqual(back.texts(), ["기다림"])

    def test_before_the_store_is_open(self) -> None:
        """A stop while the store is being opened is a stop like others: nothing is amiss."""
        self.server.threads.stuck = True
        self.server.start()
        self.server.stop()
        self.run_for(FLUSH_SECONDS + STOP_SECONDS + 1.0)
        self.assertTrue(self.server.is_over())
        self.assertEqual((self.exits, self.logged("domaeka ends")), ([], 0))

    def test_while_the_store_is_down(self) -> None:
        """A stop is quick while the store is not there; chat that waited for it is counted."""
        self.server.threads.stuck = True
        self.server.start()
        self.run_for(STORE_SECONDS)
        phone = self.server.phone()
        phone.say("# echo 하나")
        self.run_for(0.1)
        self.server.stop()
        self.run_for(3.0)
        self.assertTrue(self.server.is_over())
        self.assertEqual(self.logged("has not been read: 1 messages are not answered"), 1)
        self.assertEqual(self.server.parts.context.metrics.held_messages_dropped.value, 1)
        self.assertEqual((self.exits, self.logged("domaeka ends")), ([], 0))

    def test_store_that_says_no(self) -> None:
        """What cannot be stored at the end is told, and does not hold it up for ever."""
        self.leave_outbox()
        self.server.parts.stores.database._open = False
        self.server.stop()
        self.run_for(60.0)
        self.assertTrue(self.server.is_over())
        self.assertEqual(self.logged("what waited for 1 phones could not be kept"), 1)

    def test_last_changes(self) -> None:
        """Likewise what clients that acknowledge have said last."""
        self.change_records()
        self.server.stop()
        self.run_for(60.0)
        self.assertTrue(self.server.is_over())
        lost = "the last changes could not be stored: the store has not answered for 15 s"
        self.assertEqual((self.logged(lost), self.logged("our own mistake")), (1, 0))


class SignalTests(StopCase):
    """SIGTERM, and SIGTERM again."""

    def test_second_signal(self) -> None:
        """The first waits for what was accepted, even if it comes twice; the second does not."""
        self.hold()
        self.signal(signal.SIGTERM)
        self.signal(signal.SIGTERM)
        self.run_for(60.0)
        self.assertEqual((self.server.serving, self.phone.online), (ServerState.STOPPING, True))
        self.signal(signal.SIGTERM)
        self.run_for(LAST_SECONDS + 0.1)
        self.assertFalse(self.phone.online)
        self.run_for(10.0)
        self.assertTrue(self.server.is_over())

    def test_two_in_one_breath(self) -> None:
        """A second one that comes before the stop has begun is not lost."""
        self.hold()
        self.handlers[signal.SIGINT](signal.SIGINT, None)
        self.clock.rightNow += ECHO_SECONDS
        self.signal(signal.SIGTERM)
        self.run_for(LAST_SECONDS + 10.0)
        self.assertTrue(self.server.is_over())

    def test_drain_then_signal(self) -> None:
        """A signal during a drain that was asked for ends it in the same order, once."""
        self.hold()
        self.server.ask("POST", "/api/v1/drain")
        self.signal(signal.SIGTERM)
        self.assertEqual(
            (self.server.serving, self.logged("draining: ")), (ServerState.STOPPING, 1)
        )
        self.assertEqual(self.server.ask("DELETE", "/api/v1/drain").status, 409)
        self.assertTrue(self.phone.online)

    def test_store_that_hangs(self) -> None:
        """Another one ends the wait for a store that hangs; what is lost by it is said."""
        self.leave_outbox()
        self.server.threads.stuck = True
        self.signal(signal.SIGTERM)
        self.run_for(2.0)
        self.assertFalse(self.server.is_over())
        self.signal(signal.SIGTERM)
        self.run_for(0.1)
        self.assertTrue(self.server.is_over())
        lost = "what waited for 1 phones could not be kept: a signal came meanwhile"
        self.assertEqual((self.logged(lost), self.logged("waited for no longer")), (1, 1))

    def test_last_changes(self) -> None:
        """So it does for changes of durable delivery."""
        self.change_records()
        self.signal(signal.SIGTERM)
        self.run_for(2.0)
        self.signal(signal.SIGTERM)
        self.run_for(STOP_SECONDS + 1.0)
        self.assertTrue(self.server.is_over())
        lost = "the last changes could not be stored: a signal came meanwhile"
        self.assertEqual((self.logged(lost), self.logged("our own mistake")), (1, 0))
