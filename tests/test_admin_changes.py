"""Tests for L{domaeka.web.api.changes} and L{domaeka.web.api.bots}."""

from domaeka import Bot, operators, role
from domaeka.bots.breakers import CommandBreaker
from domaeka.bots.commands import Event
from domaeka.config import BotsSettings, BreakerSettings
from domaeka.gateway.lifecycle.migration import MigrationPlan
from tests.api_case import ApiCase
from tests.bots_fakes import FakeOrigin, make_chat


class ChangesTests(ApiCase):
    """A stop, a move, other settings."""

    def test_drain(self) -> None:
        """A stop is begun, seen, and called off while that is possible."""
        self.assertFalse(self.get("/drain")["draining"])
        status, body = self.ask("POST", "/drain")
        self.assertEqual(status, 202)
        self.assertEqual(
            body,
            {
                "draining": True,
                "told": 3,
                "connections": 4,
                "unanswered": 5,
                "seconds_left": 29.9,
            },
        )
        self.assertEqual(self.operations.reasons, ["operator"])
        self.operations.refusal = "the port is taken"
        self.assertEqual(self.refusal("DELETE", "/drain")[:2], (409, "CANNOT_LISTEN"))
        self.operations.refusal = None
        self.assertFalse(self.ask("DELETE", "/drain")[1]["draining"])
        self.assertEqual(self.refusal("DELETE", "/drain")[:2], (409, "NOT_DRAINING"))

    def test_migration(self) -> None:
        """A move is begun with what was said, else by the settings; seen; called off."""
        self.assertEqual(self.refusal("GET", "/migration")[0], 404)
        body = {"host": "new.example.org", "port": 9000, "migrate_after": 5}
        status, state = self.ask("POST", "/migration", body)
        self.assertEqual((status, state["phase"]), (202, "moving"))
        (plan,) = self.operations.plans
        self.assertEqual(plan, MigrationPlan("new.example.org", 9000, False, 5.0, 30.0))
        self.assertEqual(self.get("/migration"), state)
        self.assertEqual(self.ask("DELETE", "/migration")[1]["phase"], "called off")
        self.assertEqual(self.refusal("DELETE", "/migration")[:2], (409, "NOT_MIGRATING"))

    def test_migration_refused(self) -> None:
        """A server that does not answer is no place to go."""
        self.operations.refusal = "it closes the connection"
        refused = self.refusal("POST", "/migration", {"host": "h", "port": 1})
        self.assertEqual(refused, (409, "MIGRATION_REFUSED", "it closes the connection"))

    def test_wrong_migration(self) -> None:
        """What is wrong is named."""
        for field, body in (
            ("host", {"port": 1}),
            ("host", {"host": "", "port": 1}),
            ("port", {"host": "h", "port": 0}),
            ("port", {"host": "h", "port": "1"}),
            ("migrate_after", {"host": "h", "port": 1, "migrate_after": -1}),
        ):
            status, _, text = self.refusal("POST", "/migration", body)
            self.assertEqual((status, text.split(":")[0]), (400, field))

    def test_reload(self) -> None:
        """What has changed is said, and what needs a restart."""
        status, body = self.ask("POST", "/reload")
        self.assertEqual(status, 200)
        self.assertEqual(body, {"changed": ["ping.interval"], "needs_restart": ["http.port"]})

    def test_bad_settings(self) -> None:
        """Settings that are wrong change nothing, and the operator is told what is."""
        self.operations.refusal = "x.toml:3: ping.interval: must be above 0"
        refused = self.refusal("POST", "/reload")
        self.assertEqual(refused, (409, "BAD_CONFIG", self.operations.refusal))


class BotsTests(ApiCase):
    """What the bots answer to."""

    def test_bots(self) -> None:
        """Commands with what became of them."""
        self.metrics.handler.labels("# 가격").observe(0.1)
        self.metrics.handler_failures.labels("# 가격").inc()
        bots = {bot["name"]: bot["commands"] for bot in self.get("/bots")["bots"]}
        self.assertEqual(
            bots["가게"],
            [
                {
                    "name": "# 가격",
                    "aliases": ["# price"],
                    "help": "값을 알려 줍니다",
                    "operators_only": False,
                    "calls": 1,
                    "failures": 1,
                    "breaker": "closed",
                    "allow": "",
                    "open_for": [],
                    "open_for_count": 0,
                }
            ],
        )
        self.assertEqual(len(bots), 2)

    def test_breaker(self) -> None:
        """A command that keeps failing is left alone, which shows; later it is tried again."""
        breaker = self.dispatcher.breakers()["# 가격"]
        assert isinstance(breaker, CommandBreaker)
        origin = FakeOrigin()
        for number in range(5):
            chat = make_chat("# 가격", channel_id=f"{number}", user_hash=f"u{number}")
            breaker.failed(breaker.begin(chat, origin), chat, origin)
        (command,) = self.get("/bots")["bots"][1]["commands"]
        self.assertEqual((command["breaker"], command["open_for"]), ("open", []))

    def test_breaker_of_a_person(self) -> None:
        """A command that is left alone for some people shows for how many, and for whom."""
        breaker = self.dispatcher.breakers()["# 가격"]
        assert isinstance(breaker, CommandBreaker)
        origin = FakeOrigin()
        for number in range(5 * 21):
            chat = make_chat("# 가격", user_hash=f"u{number // 5}")
            breaker.failed(breaker.begin(chat, origin), chat, origin, ValueError())
        (command,) = self.get("/bots")["bots"][1]["commands"]
        self.assertEqual((command["breaker"], command["open_for_count"]), ("closed", 21))
        self.assertEqual(len(command["open_for"]), 20)
        self.assertEqual(command["open_for"][0], "'봇' 'd1' room '1001' person 'u0'")

    def test_same_name(self) -> None:
        """Bots for different phones may have a command of one name; listeners are no services."""
        bots = [Bot(name, names=(name,)) for name in ("집", "가게")]
        for bot in bots:
            bot.command("# 같은", allow=role("직원") | operators)(print)
            bot.on_message(print)
        self.dispatcher.apply(bots, BotsSettings(), BreakerSettings())
        body = self.get("/bots")
        shown = [(one["name"], one["commands"][0]["allow"]) for one in body["bots"][1:]]
        self.assertEqual(
            shown, [("집", "operators | role(직원)"), ("가게", "operators | role(직원)")]
        )
        listeners = {listener.name for bot in bots for listener in bot.handlers.all(Event.MESSAGE)}
        self.assertEqual(listeners & {one["name"] for one in body["services"]}, set())
