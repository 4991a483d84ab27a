"""Tests for L{domaeka.server.assembly}: how the parts hang together."""

from domaeka import secrets
from domaeka.errors import ConfigError, StoreError
from domaeka.interfaces import ChatLine
from domaeka.policies.limits import Ban
from domaeka.secrets import Secrets
from domaeka.server.assembly import Keys
from domaeka.store.chatlog import MAX_WAITING_LINES
from tests.server_case import ServerCase


class AssembleTests(ServerCase):
    """Tests for L{assemble}."""

    def test_ports_that_are_taken(self) -> None:
        """A port that somebody else has is named, with the setting; nothing else is kept."""
        for port, key in ((9000, "server.port"), (8999, "http.port")):
            self.network.taken = {port}
            error = self.assertRaises(ConfigError, self.server.make)
            why = "Address already in use: does another server run?"
            said = f"{key}: cannot listen on 127.0.0.1:{port}: {why}"
            self.assertEqual(str(error), said)

    def test_gauges(self) -> None:
        """The metrics read where things are: phones, bans, breakers, the state of the server."""
        self.server.start()
        self.server.phone().say("# echo 말")
        self.server.parts.context.limits.load([Ban("198.51.100.0/24", "spam", self.wall(), None)])
        self.run_for(2.0)
        lines = set(self.server.ask("GET", "/metrics").text.splitlines())
        expected = {
            "domaeka_connections 1.0",
            "domaeka_draining 0.0",
            "domaeka_bans 1.0",
            'domaeka_breaker_state{name="# echo"} 0.0',
            "domaeka_tls_certificate_expires_seconds 0.0",
            "domaeka_outbox_bytes 0.0",
            "domaeka_outbox_messages 0.0",
            "domaeka_store_queue 0.0",
            'domaeka_handler_failures_total{command="# slow"} 0.0',
            "domaeka_sessions 0.0",
        }
        self.assertEqual(expected - lines, set())
        self.assertNotIn("domaeka_store_write_seconds_count 0.0", lines)

    def test_health(self) -> None:
        """Every part that can fail has its check."""
        self.server.start()
        checks = self.server.ask("GET", "/health").body["checks"]
        names = (
            "store",
            "chat log",
            "durable delivery",
            "keys",
            "sweep",
            "clock",
            "bots",
            "certificate",
        )
        self.assertIn("disk", checks)  # that of this machine may be full
        del checks["disk"]
        self.assertEqual(checks, dict.fromkeys((*names, "certificate"), "ok"))

    def test_bans(self) -> None:
        """Bans that are made are stored; where they cannot be, that is said, and they hold."""
        self.server.start()
        context, stores = self.server.parts.context, self.server.parts.stores
        ban = Ban("198.51.100.0/24", "spam", self.wall(), None)
        context.store_bans([ban])
        self.assertEqual(self.successResultOf(stores.bans.load()), [ban])
        stores.database._ended = StoreError("closed")
        context.store_bans([ban])
        self.assertEqual(self.logged("bans are in force, but not stored: closed"), 1)

    def test_command(self) -> None:
        """What lifts a ban can be typed as it is said, with where this server is found."""
        self.server.make()
        typed = self.server.parts.context.lift_command("192.0.2.1/32")
        self.assertIn("bans lift 192.0.2.1/32 --state-dir", typed)

    def test_without_chat_log(self) -> None:
        """Where chat is not to be written, none is."""
        self.server.settings.append(("storage.chat_log", "false"))
        self.server.start()
        self.server.phone().say("# echo 말")
        self.run_for(5.0)
        self.assertIsNone(self.server.parts.context.chat_log)
        self.assertEqual(self.server.parts.stores.chat_log.waiting, 0)

    def test_dropped_lines_are_counted(self) -> None:
        """Lines for which the chat log has no room are in the metric on which an alert stands."""
        self.server.threads.stuck = True
        self.server.start()
        line = ChatLine(0.0, "in", "봇", "d", "1", "방", "나", None, None, "말")
        for _ in range(MAX_WAITING_LINES + 3):
            self.server.parts.stores.chat_log.append(line)
        self.assertEqual(self.server.parts.context.metrics.chat_lines_dropped.value, 3)
        self.server.threads.go_on()


class KeysTests(ServerCase):
    """Tests for L{Keys}."""

    def test_published_key(self) -> None:
        """A key that everybody knows is told of for as long as it is accepted."""
        self.patch(secrets, "is_published", lambda key: key == "old")
        held = Secrets(
            secret_key="new",
            salt="",
            previous_secret_key="old",
            previous_valid_until=self.wall() + 10.0,
        )
        keys = Keys(held, self.wall)
        self.assertIn("everybody knows it", str(keys.health()))
        self.run_for(11.0)
        self.assertIsNone(keys.health())
