"""Tests for L{domaeka.gateway.directory.registry}: who is connected, and who gives way to whom."""

from collections.abc import Callable
from math import inf

from twisted.logger import capturedLogs, formatEvent

from domaeka.config import load_settings
from domaeka.errors import CloseReason
from domaeka.gateway.directory.manager import TAKEOVERS_SUSPECT
from domaeka.gateway.directory.registry import LEAST_AWAY
from domaeka.interfaces import Approval, DeviceKey
from domaeka.policies.auth import Signer
from domaeka.policies.limits import CHECKS_PER_MINUTE, HELD_SECONDS, Ban
from domaeka.wire import Reply
from tests.gateway_case import KEY, SALT, SECRET, FakeSessions, GatewayCase

NEW = "a newer secret of enough bytes"
STRANGERS_HOST = "198.51.100.7"


def key(number: int) -> DeviceKey:
    """One device of many."""
    return DeviceKey("봇", f"{number:016x}")


class TakeOverTests(GatewayCase):
    """Two connections of one device."""

    def test_newer_wins(self) -> None:
        """The older one is told and closed; what is said goes to the newer one."""
        older, newer = self.ready(), self.ready()
        self.assertEqual((older.errors, older.lost, newer.finished), (["TAKEN_OVER"], True, False))
        self.assertEqual(self.reasons, {"taken over": 1})
        newer.chat("말")
        self.assertEqual(newer.texts, ["말"])

    def test_stranger_throws_nobody_out(self) -> None:
        """Who only knows a phone's names replaces nobody."""
        phone = self.ready()
        stranger = self.greeted()
        stranger.write(stranger.unsigned.pong("?"))
        self.run_for(40.0)
        self.assertFalse(phone.finished)
        self.assertEqual(self.reasons, {"authentication timeout": 1})

    def test_old_one_ends_late(self) -> None:
        """The end of the old connection, whenever it comes, does not touch the new one."""
        for wait in (0.0, 3.0, 8.0):
            older = self.ready()
            older.polite = False
            newer = self.ready()
            self.run_for(wait)
            older.drop()
            self.run_for(0.1)
            newer.chat("말")
            self.assertEqual(newer.texts, ["말"])
            self.assertIs(self.device().connection, self.conversation())
            newer.drop()

    def test_reload(self) -> None:
        """A phone whose script is reloaded overlaps for some seconds, and stays served."""
        for script in ("3.2.1", "3.3.3"):
            phone = self.phone(script=script)
            self.run_for(10.0)
            phone.reload()
            self.run_for(10.0)
            phone.say("말")
            self.run_for(0.1)
            self.assertEqual((phone.texts(), len(phone.record.connects)), (["말"], 2))
            phone.stop()
            self.run_for(1.0)

    def test_what_waits_moves_on(self) -> None:
        """What the older connection had not sent goes out on the newer one, once."""
        older = self.ready()
        older.stop_reading()
        texts = [f"{number} {'x' * 10_000}" for number in range(8)]
        older.chat(*texts)
        newer = self.greeted()
        newer.pong()
        older.read_on()
        self.run_for(0.1)
        received = older.texts + newer.texts
        self.assertEqual(received, texts[-len(received) :])
        self.assertTrue(older.lost)

    def test_pending_answers(self) -> None:
        """Answers to what the older connection said come on the newer one."""
        self.bots.hold = True
        older = self.ready()
        older.chat("하나")
        newer = self.ready()
        self.bots.release()
        self.run_for(0.0)
        self.assertEqual((older.texts, newer.texts), ([], ["하나"]))

    def test_two_phones_of_one_name(self) -> None:
        """Phones that throw each other out are noticed, for as long as they do."""
        first = self.phone()
        self.run_for(0.5)
        phones = first, self.phone()
        self.run_for(4.0 * TAKEOVERS_SUSPECT + 1.0)
        duplicates = self.metrics.errors.labels("duplicate device")
        self.assertEqual(duplicates.value, 1)
        self.run_for(300.0)
        self.assertGreater(duplicates.value, 3)
        self.assertTrue(all(len(phone.record.connects) > 30 for phone in phones))

    def test_one_reload_is_no_duplicate(self) -> None:
        """A phone that comes back now and then is not suspected."""
        for _ in range(20):
            self.ready()
            self.run_for(30.0)
        self.assertEqual(self.counted(self.metrics.errors), {})


class LimitTests(GatewayCase):
    """C{server.max_connections}."""

    def setUp(self) -> None:
        super().setUp()
        self.serve(("server.max_connections", "3"))

    def test_oldest_stranger_gives_way(self) -> None:
        """When full, the oldest that has not authenticated gives way to a new one."""
        phone, first, second = self.ready(key(1)), self.connect(), self.greeted(key(2))
        third = self.connect()
        self.assertEqual((first.lost, second.finished, third.finished), (True, False, False))
        self.ready(key(3))
        self.assertEqual((phone.finished, second.lost, third.finished), (False, True, False))
        self.assertEqual(self.reasons, {"gave way": 2})
        self.assertEqual(self.directory.admission.taken, 3)

    def test_full_of_phones(self) -> None:
        """
        Only when all have authenticated is a new one told, and closed: as soon as it has named a
        device that is not there, or has said nothing for a moment.
        """
        phones = [self.ready(key(number)) for number in range(3)]
        late, silent = self.greeted(key(4)), self.connect()
        self.assertEqual((late.errors, late.lost), (["SERVER_FULL"], True))
        self.assertFalse(silent.lost)
        self.run_for(2.0)
        self.assertEqual((silent.errors, silent.lost), (["SERVER_FULL"], True))
        self.assertEqual([phone.finished for phone in phones], [False] * 3)
        self.assertEqual(self.reasons, {"server full": 2})
        phones[0].drop()
        self.assertFalse(self.greeted(key(4)).finished)

    def test_phone_that_comes_back(self) -> None:
        """A phone whose old connection is dead takes its place in a full server, once proven."""
        phones = [self.ready(key(number)) for number in range(3)]
        forger = self.greeted(key(1), secret="another secret of enough bytes")
        forger.pong()
        back = self.greeted(key(1))
        self.assertEqual((phones[1].finished, back.finished), (False, False))
        self.assertEqual(self.directory.admission.taken, 3)
        back.pong()
        self.assertEqual((phones[1].errors, back.finished), (["TAKEN_OVER"], False))
        self.run_for(4.0)
        self.assertEqual((forger.errors[-1], forger.lost), ("SERVER_FULL", True))
        self.assertEqual((self.directory.admission.taken, self.directory.admission.phones), (3, 3))
        self.assertEqual(self.counted(self.metrics.attempts), {"accepted": 4, "refused": 1})

    def test_place_that_gets_free(self) -> None:
        """The place of a phone that leaves is for the one that claimed it last."""
        phones = [self.ready(key(number)) for number in range(3)]
        other, back = self.greeted(key(1)), self.greeted(key(1))
        phones[1].drop()
        self.assertEqual((other.errors, self.directory.admission.taken), (["SERVER_FULL"], 3))
        self.run_for(20.0)
        self.assertFalse(back.finished)
        back.pong()
        self.assertEqual(self.directory.admission.phones, 3)

    def test_counted(self) -> None:
        """Attempts are counted by what became of them."""
        for number in range(4):
            self.ready(key(number))
        self.assertEqual(self.counted(self.metrics.attempts), {"accepted": 3, "refused": 1})
        self.assertEqual(self.counted(self.metrics.refusals), {"server full": 1})

    def test_phones(self) -> None:
        """Strangers are connections; a phone is who has proven to be one, until it closes."""
        self.greeted(key(1))
        self.connect()
        peer = self.ready(key(2))
        self.assertEqual((self.directory.admission.taken, self.directory.admission.phones), (3, 1))
        peer.drop()
        self.assertEqual((self.directory.admission.taken, self.directory.admission.phones), (2, 0))

    def test_those_that_close_slowly(self) -> None:
        """Strangers that do not close do not pile up: beyond some they are cut off at once."""
        for number in range(3):
            self.ready(key(number))
        for _ in range(40):
            self.connect().polite = False
            self.assertLess(self.registry.connections, 20)
        self.run_for(7.0)
        self.assertEqual(self.registry.connections, 3)
        self.assertEqual(self.reasons, {"server full": 40})


class AddressTests(GatewayCase):
    """Limits by address."""

    def setUp(self) -> None:
        super().setUp()
        self.server.client_host = STRANGERS_HOST

    def test_rate(self) -> None:
        """The eleventh stranger of an address within a minute is not let in."""
        refused = [self.connect().refused for _ in range(12)]
        self.assertEqual(refused, [False] * 10 + [True] * 2)
        self.assertEqual(self.counted(self.metrics.refusals), {"rate limited": 2})
        self.assertEqual(self.counted(self.metrics.attempts), {"accepted": 10, "refused": 2})

    def test_phones_are_given_back(self) -> None:
        """Phones that authenticate do not count, however many there are behind one router."""
        for number in range(30):
            self.ready(key(number))
        self.assertEqual(self.directory.admission.taken, 30)

    def test_full_is_given_back(self) -> None:
        """Nor do phones that are known and were refused for want of room; all others do."""
        for known, attempts in ((True, 30), (False, 10)):
            self.serve(("server.max_connections", "1"))
            self.ready(key(1))
            self.server.client_host = STRANGERS_HOST
            if known:
                self.devices.known[key(2)] = Approval.APPROVED
            refused = []
            for _ in range(30):
                peer = self.connect(key(2))
                refused.append(peer.refused)
                if not peer.refused:
                    peer.handshake()
            self.assertEqual(refused, [False] * attempts + [True] * (30 - attempts))

    def test_full_for_impostors(self) -> None:
        """Who is told to prove itself and cannot has used up an attempt, in a full server, too."""
        self.serve(("server.max_connections", "1"))
        self.ready(key(1))
        self.server.client_host = STRANGERS_HOST
        refused = []
        for _ in range(12):
            impostor = self.connect(key(1), secret="another secret of enough bytes")
            refused.append(impostor.refused)
            if not impostor.refused:
                impostor.handshake()
                impostor.drop()
        self.assertEqual(refused, [False] * 10 + [True] * 2)

    def test_sent_away_is_given_back(self) -> None:
        """Nor do phones that we close because we stop, before they could prove themselves."""
        self.devices.known[KEY] = Approval.APPROVED
        self.server.client_host = STRANGERS_HOST
        for _ in range(30):
            self.assertFalse(self.greeted().refused)
            self.drain.begin("shutdown")
            self.run_for(0.1)
            self.drain.call_off()

    def test_wrong_signatures(self) -> None:
        """Wrong signatures get an address banned by the sweep: its strangers, not its phones."""
        phone = self.ready(key(1))
        self.run_for(61.0)
        forger = self.connect(key(2), secret="another secret of enough bytes")
        forger.handshake()
        forger.chat(*"abcdef")
        self.run_for(11.0)
        self.assertTrue(self.connect().refused)
        self.assertEqual((forger.errors[-1], forger.lost), ("BANNED", True))
        self.assertFalse(phone.finished)
        self.assertEqual(self.reasons, {"banned": 1})

    def test_who_is_banned_is_named(self) -> None:
        """The log says for whom, why, for how long, and what to type once it is mended."""
        self.server.client_host = STRANGERS_HOST
        self.context.lift_command = "domaeka bans lift {} --state-dir '/srv/{{d}}'".format
        forger = self.connect(key(2), secret="another secret of enough bytes")
        forger.chat(*"abcdef")
        with capturedLogs() as events:
            self.run_for(15.0)
        [event] = [event for event in events if "network" in event]
        self.assertEqual(
            formatEvent(event),
            "banned 198.51.100.7/32 for 60 s: 5 wrong signatures in a minute, of what claims to be "
            "bot '봇', device '0000000000000002'; where it is yours, mend its secret key and salt "
            "(domaeka secrets show), then: domaeka bans lift 198.51.100.7/32 --state-dir "
            "'/srv/{d}'",
        )

    def test_mended_within_its_ban(self) -> None:
        """A phone with a wrong key is out for a minute; mended meanwhile, it is in for good."""
        self.server.client_host = STRANGERS_HOST
        wrong = {"secret": "another secret of enough bytes"}
        peer = self.ready(key(1), **wrong)
        for _ in range(15):
            if peer.lost or peer.finished:
                peer = self.greeted(key(1), **wrong)
            if not peer.refused:
                peer.chat(*"말말")
            self.run_for(4.0)
            if self.context.limits.bans():
                break
        [ban] = self.context.limits.bans()
        self.assertTrue(self.connect(key(1)).refused)
        self.assertEqual(ban.expires, ban.made_at + 60.0)
        for _ in range(15):
            self.run_for(4.0)
            peer = self.connect(key(1))
            if not peer.refused:
                break
        peer.handshake()
        peer.chat("고침")
        self.assertEqual(peer.texts, ["고침"])
        self.run_for(300.0)
        self.assertEqual(self.context.limits.bans(), [])
        self.assertFalse(self.connect(key(2)).refused)

    def test_wrong_key_stays_refused(self) -> None:
        """Whoever goes on with a wrong key is answered nothing, and banned ever longer."""
        self.server.client_host = STRANGERS_HOST
        seconds: list[float] = []
        answered: list[str] = []
        for _ in range(200):
            peer = self.connect(key(1), secret="another secret of enough bytes")
            if not peer.refused:
                peer.handshake()
                peer.chat(*"0123456789")
                answered += peer.texts
            self.run_for(4.0)
            for ban in self.context.limits.bans():
                if ban.seconds not in seconds:
                    seconds.append(ban.seconds or 0.0)
        self.assertEqual((answered, self.bots.submitted), ([], []))
        self.assertEqual(seconds, [60.0, 120.0, 240.0, 480.0])

    def test_phone_that_is_heard(self) -> None:
        """Where a phone was heard within the minute no stranger is banned."""
        self.serve(("ping.interval", "3600"), ("ping.initial_delay_min", "59"))
        self.server.client_host = STRANGERS_HOST
        phone = self.ready(key(1))
        self.run_for(50.0)
        phone.chat("말")
        self.run_for(50.0)
        forger = self.connect(key(2), secret="another secret of enough bytes")
        forger.chat(*"abcdef")
        self.run_for(11.0)
        self.assertFalse(self.connect().refused)

    def test_ban_of_an_operator(self) -> None:
        """An operator's ban is for everybody in the network."""
        phone = self.ready(key(1))
        ban = self.context.limits.ban("198.51.100.0/24", "trouble", made_by="operator")
        assert ban is not None
        self.directory.decisions.ban_made(ban)
        self.run_for(0.0)
        self.assertEqual((phone.errors, phone.lost), (["BANNED"], True))
        self.assertEqual(self.reasons, {"banned": 1})


class HealthCheckTests(GatewayCase):
    """Connections of those that only look whether the server is there."""

    def setUp(self) -> None:
        super().setUp()
        self.server.client_host = STRANGERS_HOST

    def look(self, data: bytes = b"", count: int = 30, wait: float = 1.0) -> int:
        """
        Connect, say something, and end it.

        @param wait: how long until the next one, in seconds.
        @return: how many were not let in.
        """
        refused = 0
        for number in range(count):
            peer = self.connect()
            refused += peer.refused
            if not peer.refused:
                if data:
                    peer.write(data)
                peer.finish() if number % 2 else peer.drop()
            self.run_for(wait)
        self.run_for(30.0)
        return refused

    def test_whoever_says_nothing_is_let_in(self) -> None:
        """Ended by a FIN or a reset, or by what is for another port: none of it is an attempt."""
        for data in (
            b"",
            b"GET / HTTP/1.0\r\n\r\n",
            b"OPTIONS / HTTP/1.1\r\n" + b"X-Header: x\r\n" * 12 + b"\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00",
            b"PROXY UNKNOWN\r\n",
            b"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00",
            b"\n",
            b"\r\n",
        ):
            self.assertEqual((self.look(data), self.context.limits.bans()), (0, []), data)
            self.assertFalse(self.ready(key(1)).refused)

    def test_flood_is_limited_and_not_banned(self) -> None:
        """More of them than anybody needs use up the attempts of their address."""
        refused = self.look(count=4 * CHECKS_PER_MINUTE, wait=0.05)
        self.assertGreater(refused, CHECKS_PER_MINUTE)
        self.assertEqual(self.context.limits.bans(), [])
        self.assertEqual(list(self.registry), [])

    def test_full_server(self) -> None:
        """Where each of them takes a stranger's place, they are attempts; nobody is banned."""
        self.serve(("server.max_connections", "2"))
        self.server.client_host = "192.0.2.1"
        self.ready(key(1))
        self.server.client_host = STRANGERS_HOST
        self.assertGreater(self.look(count=30), 10)
        self.assertEqual(self.context.limits.bans(), [])

    def test_flood_of_bytes_is_banned(self) -> None:
        """Whoever says something, if only a byte, is no health check."""
        for data in (b"x", b"{", b"G", b'{"event":"ping"}\n'):
            self.serve()
            self.server.client_host = STRANGERS_HOST
            self.assertGreater(self.look(data), 10)
            [ban] = self.context.limits.bans()
            self.assertEqual(ban.seconds, 3600.0)

    def test_held_connections_are_banned(self) -> None:
        """Whoever holds connections open, in silence or behind a request, is no health check."""
        for data, held in ((b"", True), (b"GET / HTTP/1.0\r\n\r\n", True), (b"", False)):
            self.serve(("server.handshake_timeout", "300"))
            self.server.client_host = STRANGERS_HOST
            peers = [self.connect() for _ in range(16)]
            for peer in peers:
                if data and not peer.refused:
                    peer.write(data)
            self.run_for(HELD_SECONDS + 1.0)
            for peer in peers:
                if not held and not peer.lost:
                    peer.drop()
            self.run_for(14.0)
            self.assertEqual(len(self.context.limits.bans()), 1, data)


class SettingsTests(GatewayCase):
    """Other settings, for connections that are open."""

    def change(self, *settings: tuple[str, str]) -> None:
        """Other settings are in force."""
        loaded = load_settings(None, settings, {})
        self.context.apply(loaded, self.context.signer)
        self.context.limits.apply(loaded.limits)
        self.directory.decisions.apply_settings()
        self.run_for(0.0)

    def test_limits(self) -> None:
        """A phone that was over its rate is read from again; one under it no longer is."""
        self.serve(("limits.messages_per_second", "1"), ("limits.messages_burst", "1"))
        peer = self.ready()
        peer.chat(*"abcde")
        self.assertEqual(peer.texts, ["a", "b"])
        self.change(("limits.messages_per_second", "0"))
        self.run_for(1.1)
        self.assertEqual(peer.texts, [*"abcde"])
        self.change(("limits.messages_per_second", "1"), ("limits.messages_burst", "1"))
        peer.chat(*"fgh")
        self.assertEqual(peer.texts, [*"abcdefg"])

    def test_longest_line(self) -> None:
        """A line may be as long as is said now."""
        peer, other = self.ready(key(1)), self.ready(key(2))
        self.change(("server.max_frame_bytes", "4096"))
        peer.chat("x" * 4096)
        self.assertEqual((peer.errors, self.reasons), (["FRAME_TOO_LARGE"], {"frame too large": 1}))
        self.change(("server.max_frame_bytes", "8192"))
        other.chat("x" * 4096)
        self.assertEqual(other.texts, ["x" * 4096])

    def test_pings(self) -> None:
        """Phones are asked as often as is said now."""
        peer = self.ready()
        self.run_for(59.0)
        peer.pong()
        peer.take()
        self.change(("ping.interval", "5"))
        self.run_for(7.0)
        self.assertGreaterEqual(peer.pings, 1)

    def test_denied(self) -> None:
        """Who is where nobody is let in now is closed, and told."""
        peer = self.ready()
        self.change(("limits.deny", '["192.0.2.0/24"]'))
        self.assertEqual((peer.errors, self.reasons), (["BANNED"], {"banned": 1}))

    def test_key_withdrawn(self) -> None:
        """Who proved itself by a key that may be in wrong hands is connected no longer."""
        phone, stranger = self.ready(), self.greeted(key(2))
        self.sign_with(NEW)
        self.run_for(0.1)
        self.assertEqual((phone.errors, phone.lost), (["AUTH_FAILED"], True))
        self.assertFalse(stranger.finished)

    def test_key_ends(self) -> None:
        """Once a previous key ends by itself, who proved itself by it is connected no longer."""
        self.sign_with(NEW, SECRET, previous_ends=self.wall() + 60.0)
        old, new = self.ready(), self.ready(key(2), secret=NEW)
        self.run_for(58.0)
        self.assertFalse(old.finished)
        self.run_for(3.5)
        self.assertEqual((old.errors, old.lost, new.finished), (["AUTH_FAILED"], True, False))

    def test_token_of_a_key_that_ends(self) -> None:
        """So is who showed a token that was gained by it; and a token gained by the other stays."""
        self.serve(sessions=(sessions := FakeSessions()))
        self.sign_with(NEW, SECRET, previous_ends=self.wall() + 60.0)
        old, new = self.context.signer.key_ids()[::-1]
        peers = []
        for number, key_id in enumerate((old, new)):
            peers.append(peer := self.connect(key(number)))
            peer.handshake(capabilities=("session",), session_token="t")
            sessions.answer("fresh", key_id)
        self.run_for(62.0)
        self.assertEqual([peer.lost for peer in peers], [True, False])

    def test_proof_is_wanted(self) -> None:
        """Where signatures are wanted from now on, who was let through without is asked for one."""
        self.serve(("auth.mode", "off"))
        peer = self.greeted()
        self.change(("auth.mode", "optional"))
        self.assertFalse(peer.finished)
        self.change(("auth.mode", "required"))
        self.assertEqual(peer.errors, ["AUTH_FAILED"])

    def sign_with(self, *secrets: str, previous_ends: float = inf) -> None:
        """These keys are accepted from now on."""
        signer = Signer(secrets, SALT, 300.0, self.wall, previous_ends)
        self.context.apply(self.context.settings, signer)
        self.directory.decisions.apply_settings()

    def test_approvals(self) -> None:
        """A device that no operator needs to approve any more is answered at once."""
        self.devices.known[KEY] = Approval.PENDING
        peer = self.ready()
        peer.chat("하나")
        self.devices.known[KEY] = Approval.APPROVED
        self.change()
        peer.chat("둘")
        self.assertEqual(peer.texts, ["둘"])


class SweepTests(GatewayCase):
    """The one sweep over everything."""

    def test_devices_are_remembered(self) -> None:
        """A device that is gone is known for as long as a session token, then forgotten."""
        self.client("ack").drop()
        self.ready(key(1)).drop()
        self.run_for(3580.0)
        self.assertEqual(len(self.registry.devices()), 2)
        self.run_for(20.0)
        self.assertEqual(self.registry.devices(), [])

    def test_made_up_devices_are_forgotten(self) -> None:
        """However many devices come and go, a bounded number is known: who was here last."""
        for number in range(LEAST_AWAY + 1):
            self.registry.get_or_create(key(number)).kept_until = (
                self.context.steady.now + 3600 + number
            )
        self.run_for(1.0)
        kept = {device.key for device in self.registry.devices()}
        self.assertEqual(kept, {key(number) for number in range(1, LEAST_AWAY + 1)})

    def test_signatures_are_forgotten(self) -> None:
        """What is no longer valid is not remembered."""
        self.ready().chat(*"abcdef")
        signatures = self.context.authentication._signatures
        self.assertGreater(len(signatures), 0)
        self.conversation().close(CloseReason.SHUTDOWN, cut=True)
        self.run_for(400.0)
        self.assertEqual(len(signatures), 0)

    def test_large_tables(self) -> None:
        """What is remembered of very many addresses is swept in turns, and others have theirs."""
        limits = self.context.limits
        for number in range(5_000):
            limits.admit(f"10.0.{number // 250}.{number % 250}")
        turns: list[object] = []
        soon = self.context.call_soon

        def counted(function: Callable[[], object]) -> None:
            turns.append(function)
            soon(function)

        self.context.call_soon = counted  # type: ignore[method-assign]
        self.run_for(11.0)
        self.assertEqual(len(turns), 4)
        self.run_for(60.0)
        self.assertEqual(len(list(limits.sweep())), 1)

    def test_outlives_mistakes_of_a_part(self) -> None:
        """What goes wrong with one device costs neither the next one nor the next sweep."""

        def broken(status: object, reason: str) -> None:
            raise ZeroDivisionError

        for number, on_status in (1, broken), (2, None):
            self.ready(key(number)).drop()
            self.device(key(number)).send(Reply("방", "1", "봇", "말"), None, on_status)
        self.run_for(40.0)
        self.assertTrue(self.flushLoggedErrors())
        self.assertEqual((self.context.budget.expired, self.directory.sweep.health()), (2, None))
        self.directory.sweep.stop()
        self.assertEqual(self.directory.sweep.health(), "it does not run")

    def test_outlives_mistakes(self) -> None:
        """A mistake of ours costs one connection, not the sweep."""
        peer, other = self.ready(key(1)), self.ready(key(2))
        broken = self.conversations()[0]
        broken._leaving = CloseReason.SHUTDOWN, "never"
        broken._due = 0.0
        self.run_for(1.5)
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)
        self.assertEqual((peer.lost, other.finished), (True, False))
        self.assertEqual(self.reasons, {"internal error": 1})

    def test_turning_away_outlives_mistakes(self) -> None:
        """Nor does a mistake with one for which there is no place."""
        self.serve(("server.max_connections", "1"))
        self.ready(key(1))
        self.connect()
        self.conversation()._transport = None
        self.run_for(3.0)
        self.assertTrue(self.flushLoggedErrors(AttributeError))
        self.assertIsNone(self.directory.sweep.health())

    def test_closing_outlives_mistakes(self) -> None:
        """A mistake of ours with one connection keeps no other from being closed."""
        peers = [self.ready(key(number)) for number in (1, 2)]
        self.conversations()[0]._transport = None
        self.directory.decisions.ban_made(Ban("192.0.2.0/24", "", 0.0, None))
        self.run_for(0.0)
        self.assertTrue(self.flushLoggedErrors(AttributeError))
        self.assertEqual(peers[1].errors, ["BANNED"])

    def test_stops(self) -> None:
        """Stopped, and its connections gone, it leaves nothing to be called."""
        peers = self.ready(key(1)), self.greeted(key(2)), self.connect()
        for session in self.registry:
            session.close(CloseReason.SHUTDOWN, cut=True)
        self.run_for(0.1)
        self.directory.sweep.stop()
        self.assertEqual([peer.lost for peer in peers], [True] * 3)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual((self.registry.connections, self.directory.admission.taken), (0, 0))
