"""Tests for the operator's commands of L{domaeka.cli}, against the API itself."""

import json
import os
import time
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult

import msgspec
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from domaeka.cli import main
from domaeka.cli.operator import GRADES, SORTS, STATES
from domaeka.cli.reach import Desk, Exchange, Unreachable
from domaeka.cli.text import duration, escaped_json, milliseconds, one_line, size
from domaeka.gateway.drain import DrainReport
from domaeka.gateway.migration import MigrationReport, Phase
from domaeka.interfaces import Approval, DeviceKey, RoomKey
from domaeka.policies.quality import Grade
from domaeka.state import load_or_create_secrets
from domaeka.web.api.connections import _ORDERS
from domaeka.web.health import HealthPages
from domaeka.web.server import make_site
from tests.api_case import ROOM_ID, TOKEN, ApiCase, replies
from tests.gateway_case import KEY, PICTURE

BOT = KEY.bot_name


class OperatorCase(ApiCase):
    """
    A gateway with its pages, and the command.

    @ivar meanwhile: what happens in each pause of the command.
    """

    def setUp(self) -> None:
        super().setUp()
        self.emptied = False
        self.pages = HealthPages(
            self.metrics,
            self.clock,
            {"store": lambda: None},
            listening=lambda: True,
            draining=lambda: self.emptied or self.operations.drain_report.running,
        )
        routes = (*self.pages.routes(), *self.api.routes())
        self.site = make_site(routes, self.clock, self.metrics, TOKEN)
        self.directory = Path(self.mktemp())
        self.directory.mkdir(mode=0o700)
        load_or_create_secrets(self.directory)
        self.meanwhile: list[Any] = []
        self.places: list[tuple[str, str]] = []
        self.away = False

    def reach(self, place: SplitResult, token: str) -> Exchange:
        """What reaches the gateway, wherever it is looked for."""
        self.places.append((place.geturl(), token))

        def send(method: str, target: str, body: bytes | None) -> tuple[int, bytes]:
            if self.away:
                raise Unreachable("cannot reach it")
            client = self.connect_client()
            client.request(method, target, {"Authorization": f"Bearer {TOKEN}"}, body or b"")
            self.run_for(0.0)
            status, _, answer = client.answer()
            client.channel.connectionLost(Failure(ConnectionError()))
            return status, answer

        return send

    def pause(self, seconds: float) -> None:
        """What happens while the command waits; Ctrl-C where nothing does."""
        if not self.meanwhile:
            raise KeyboardInterrupt
        self.meanwhile.pop(0)()
        self.run_for(seconds)

    def run_command(self, *arguments: str, stdin: str | bytes | None = None) -> Result:
        """Run the command."""
        desk = Desk(self.reach, self.pause)
        environment = {"XDG_STATE_HOME": str(self.directory), "STATE_DIRECTORY": None}
        token = () if "--token-file" in arguments else ("--state-dir", str(self.directory))
        return CliRunner().invoke(
            main, [*arguments, *token], obj=desk, env=environment, input=stdin
        )

    def output(self, *arguments: str, stdin: str | bytes | None = None) -> str:
        """What a command that succeeds writes."""
        result = self.run_command(*arguments, stdin=stdin)
        self.assertEqual(result.exit_code, 0, result.output)
        return result.stdout

    def json(self, *arguments: str) -> Any:
        """What a command that succeeds writes for scripts."""
        return json.loads(self.output(*arguments, "--json"))


class SeeingTests(OperatorCase):
    """What an operator sees."""

    def test_status(self) -> None:
        """How the server is, in lines and for scripts; not to be well is a failure."""
        self.heard(KEY)
        found = self.json("status")
        self.assertEqual((found["health"]["status"], found["grades"]["good"]), ("healthy", 1))
        self.assertEqual(found["pending"], {"devices": 0, "rooms": 0})
        shown = self.output("status")
        for text in ("healthy", "none waiting for approval", "store"):
            self.assertIn(text, shown)
        self.operations.drain("operator")
        result = self.run_command("status")
        self.assertEqual(result.exit_code, 1)
        self.assertIn("draining: 3 phones told", result.stdout)

    def test_connections(self) -> None:
        """Those that are open, one of them with all that is known, those that have ended."""
        peer = self.heard(KEY)
        self.assertIn(KEY.device_id, self.output("connections", "--sort", "score"))
        pinger = self.session()._pinger
        assert pinger is not None
        pinger.clock_skew = -0.004
        facts = self.output("connections", BOT, KEY.device_id)
        for text in ("good 100", ", median ", " +0.0 s"):
            self.assertIn(text, facts)
        (one,) = self.json("connections", "--grade", "good", "--desc")["connections"]
        self.assertEqual(one["device"], KEY.device_id)
        self.assertEqual(self.json("connections", "--grade", "poor")["connections"], [])
        peer.drop()
        self.assertEqual(self.run_command("connections", BOT, KEY.device_id).exit_code, 1)
        shown = self.output("connections", "--closed", "--reason", "connection-lost")
        self.assertIn("connection lost", shown)
        closed = self.json("connections", "--closed", "--reason", "ping timeout")
        self.assertEqual(closed["connections"], [])
        self.assertEqual(self.run_command("connections", "--closed", "--reason", "no").exit_code, 2)

    def test_times(self) -> None:
        """Tables have the times of clocks here, and say which; what scripts read is UTC."""
        zone = os.environ.get("TZ")
        self.addCleanup(self.live_in, zone)
        self.heard(KEY)
        (device,) = self.json("devices")["devices"]
        for place, shown in (("Asia/Seoul", "2026-09-21 23:13:20 KST"), ("UTC", "14:13:20 UTC")):
            self.live_in(place)
            self.assertIn(shown, self.output("devices"))
            self.assertEqual(self.json("devices")["devices"], [device])

    def live_in(self, zone: str | None) -> None:
        """Have the clocks here be those of a time zone; L{None}: of what the machine says."""
        os.environ.pop("TZ", None)
        if zone is not None:
            os.environ["TZ"] = zone
        time.tzset()

    def test_completion(self) -> None:
        """A shell is offered reasons as words, without spaces."""
        words = "domaeka connections --closed --reason ping"
        environment = {"_DOMAEKA_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": "4"}
        result = CliRunner().invoke(main, prog_name="domaeka", env=environment)
        self.assertEqual(result.stdout.split(), ["plain,ping-timeout"])

    def test_every_page(self) -> None:
        """A list goes on over as many pages as it takes, up to the limit that is given."""
        for number in range(250):
            self.stored_devices.set_approval(DeviceKey("bot", f"{number:03}"), Approval.APPROVED)
        self.assertEqual(len(self.json("devices")["devices"]), 250)
        self.assertEqual(len(self.json("devices", "--limit", "201")["devices"]), 201)
        self.assertEqual(len(self.output("devices").splitlines()), 251)

    def test_choices(self) -> None:
        """What may be chosen is what the API knows."""
        self.assertEqual(GRADES, tuple(Grade))
        self.assertEqual(STATES, tuple(Approval))
        self.assertEqual(SORTS, tuple(_ORDERS))

    def test_watch(self) -> None:
        """Again and again until Ctrl-C; a server that is away is waited for."""
        self.heard(KEY)

        def away(is_away: bool) -> Any:
            return lambda: setattr(self, "away", is_away)

        self.meanwhile = [away(True), away(False)]
        result = self.run_command("connections", "--watch", "--json")
        self.assertEqual(result.exit_code, 0, result.output)
        self.assertEqual([json.loads(line)["total"] for line in result.stdout.splitlines()], [1, 1])
        self.assertIn("trying again", result.stderr)

    def test_names_of_strangers(self) -> None:
        """Korean aligns; no name commands the terminal, and JSON keeps each as it is."""
        evil = "a\x1b[2J\x9b2J\u202e[red]b"
        for name in ("가게봇", "bot", "긴 이름의 봇"):
            self.stored_devices.set_approval(DeviceKey(name, "id"), Approval.APPROVED)
        self.stored_rooms.enter(RoomKey("bot", ROOM_ID), DeviceKey("bot", "id"), evil, True)
        lines = self.output("devices").splitlines()
        starts = [cell_len(line[: line.index(" id ")]) for line in lines[1:]]
        self.assertEqual(len(set(starts)), 1, lines)
        shown = self.output("rooms")
        self.assertIn("a\ufffd[2J\ufffd2J\ufffd[red]b", shown)
        written = self.output("rooms", "--json")
        self.assertTrue(written.strip().isprintable())
        self.assertEqual(json.loads(written)["rooms"][0]["name"], evil)


class DecidingTests(OperatorCase):
    """What an operator decides."""

    def test_devices(self) -> None:
        """Several at once; one that is new to the server is noted."""
        self.heard(KEY)
        result = self.run_command("devices", "block", BOT, KEY.device_id, "new")
        self.assertEqual(result.exit_code, 0, result.output)
        self.assertIn("new is new to the server", result.stderr)
        states = {one["device"]: one["status"] for one in self.json("devices")["devices"]}
        self.assertEqual(states, {KEY.device_id: "blocked", "new": "blocked"})
        found = self.json("devices", "approve", BOT, KEY.device_id)
        self.assertEqual(found["devices"][0]["status"], "approved")

    def test_some_are_refused(self) -> None:
        """One that cannot be decided on is named, and the others are decided on."""
        self.heard(KEY)
        result = self.run_command("devices", "block", BOT, "x" * 200, KEY.device_id)
        self.assertEqual(result.exit_code, 1)
        self.assertIn(f"domaeka: {'x' * 200}: ", result.stderr)
        (device,) = self.json("devices")["devices"]
        self.assertEqual((device["device"], device["status"]), (KEY.device_id, "blocked"))
        self.output("bans", "add", "203.0.113.7")
        result = self.run_command("bans", "lift", "192.0.2.1", "203.0.113.7")
        self.assertEqual((result.exit_code, self.json("bans")["total"]), (1, 0))
        self.assertIn("domaeka: 192.0.2.1: ", result.stderr)

    def test_rooms(self) -> None:
        """A room is found by its name too, where no other has it."""
        self.heard(KEY, room="시험방")
        self.output("rooms", "deny", BOT, "시험방")
        (room,) = self.json("rooms")["rooms"]
        self.assertEqual((room["room"], room["status"]), (ROOM_ID, "denied"))
        self.heard(DeviceKey(BOT, "other"), room="시험방", channel_id="7")
        result = self.run_command("rooms", "approve", BOT, "시험방")
        self.assertEqual(result.exit_code, 1)
        self.assertIn("2 rooms have this name", result.output)

    def test_bans(self) -> None:
        """Made, listed and lifted."""
        self.output("bans", "add", "203.0.113.7", "--reason", "floods", "--seconds", "60")
        self.assertIsNone(self.json("bans", "add", "2001:db8::/64", "--forever")["expires"])
        self.assertIn("floods", self.output("bans"))
        state = ("--state-dir", str(self.directory))
        self.output("bans", *state, "--reason", "list", "add", "192.0.2.1")
        self.output("bans", *state, "lift", "192.0.2.1")
        self.assertEqual(self.json("bans")["total"], 2)
        self.output("bans", "lift", "203.0.113.7", "2001:db8::/64")
        self.assertEqual(self.json("bans")["total"], 0)
        self.assertEqual(self.run_command("bans", "lift", "203.0.113.7").exit_code, 1)
        self.assertEqual(self.run_command("bans", "add", "nonsense").exit_code, 1)


class SendingTests(OperatorCase):
    """C{domaeka send}."""

    def send(self, *arguments: str, stdin: str | bytes | None = None) -> Result:
        return self.run_command("send", "--bot", BOT, "--room", "방", *arguments, stdin=stdin)

    def test_text(self) -> None:
        """A text, or what is piped in, shows in the room."""
        peer = self.heard(KEY)
        result = self.send("안녕", "--wait")
        self.assertEqual(result.exit_code, 0, result.output)
        self.assertIn("sent", result.output)
        self.assertEqual(self.send(stdin="파이프\n").exit_code, 0)
        self.run_for(0.0)
        self.assertEqual([reply.content for reply in replies(peer)], ["안녕", "파이프"])

    def test_media(self) -> None:
        """Files go by their bytes, addresses as they are."""
        peer = self.heard(KEY)
        picture = self.directory / "picture.png"
        picture.write_bytes(PICTURE)
        address = "https://shop.example/a.png"
        result = self.send("--media", str(picture), "--media", address, "--wait-time", "3000")
        self.assertEqual(result.exit_code, 0, result.output)
        self.run_for(60.0)
        pieces = [reply.content.pieces for reply in replies(peer)]  # type: ignore[union-attr]
        self.assertEqual(pieces, [(PICTURE,), (address,)])
        self.assertEqual(self.send("--media", "nowhere.png").exit_code, 1)

    def test_fate(self) -> None:
        """What waits for a phone that does not come expires: a failure."""
        self.heard(KEY).drop()
        self.meanwhile = [lambda: self.run_for(20.0)] * 3
        result = self.send("말", "--wait", "--ttl", "30", "--json")
        self.assertEqual(result.exit_code, 1, result.output)
        self.assertEqual(json.loads(result.stdout)["state"], "expired")

    def test_wrong_use(self) -> None:
        """What contradicts itself is a wrong use; what the server refuses, a failure."""
        for arguments in (
            ("말", "--media", "a.png"),
            ("말", "--wait-time", "5"),
            ("말", "--ttl", "0"),
        ):
            self.assertEqual(self.send(*arguments).exit_code, 2, arguments)
        self.assertEqual(self.run_command("send", "--bot", BOT, "말").exit_code, 2)
        result = self.send("말")
        self.assertEqual(result.exit_code, 1)
        self.assertIn("NO_PHONE", result.output)


class ChangingTests(OperatorCase):
    """A stop, a move, other settings."""

    def test_drain(self) -> None:
        """Begun, seen, and called off; waited for until nobody answers."""
        self.assertIn("3 phones told", self.output("drain"))
        self.assertTrue(self.json("drain", "--status")["draining"])
        self.assertIn("no drain runs", self.output("drain", "--off"))
        self.assertEqual(self.run_command("drain", "--off").exit_code, 1)

    def test_drain_to_the_end(self) -> None:
        """Waited for until nobody answers; called off meanwhile, it has failed."""

        def emptied() -> None:
            self.operations.drain_report = DrainReport()
            self.emptied = True

        def away() -> None:
            self.away = True

        self.meanwhile = [emptied, away]
        result = self.run_command("drain", "--wait")
        self.assertEqual(result.exit_code, 0, result.output)
        self.assertEqual(
            [line.split(":")[0] for line in result.stdout.splitlines()],
            ["draining", "no phone is left", "the server has ended"],
        )
        self.away = self.emptied = False
        self.meanwhile = [self.operations.call_off_drain]
        self.assertEqual(self.run_command("drain", "--wait").exit_code, 1)

    def test_migrate(self) -> None:
        """Begun with what was said, seen and called off."""
        self.assertEqual(self.run_command("migrate", "--status").exit_code, 1)
        found = self.json("migrate", "[2001:db8::1]:9001", "--tls", "--spread", "5")
        self.assertEqual((found["phase"], found["host"]), ("moving", "2001:db8::1"))
        (plan,) = self.operations.plans
        self.assertEqual((plan.port, plan.tls, plan.spread), (9001, True, 5.0))
        self.assertIn("[2001:db8::1]:9001", self.output("migrate", "--status"))
        self.assertEqual(self.json("migrate", "--off")["phase"], "called off")

    def test_migrate_to_the_end(self) -> None:
        """Waited for: done is a success, halted is not."""
        for phase, status in ((Phase.DONE, 0), (Phase.HALTED, 1)):
            report = MigrationReport(phase, "new.example", 9000, arrived=7)
            self.meanwhile = [
                lambda report=report: setattr(self.operations, "migration_report", report)
            ]
            result = self.run_command("migrate", "new.example:9000", "--wait")
            self.assertEqual(result.exit_code, status, result.output)
            self.assertIn(f"{phase}, to new.example:9000", result.output)

    def test_targets(self) -> None:
        """What is no place to move to is a wrong use."""
        for target in ("host", ":1", "h:0", "h:65536", "::1", "h:９", "[]:1"):
            self.assertEqual(self.run_command("migrate", target).exit_code, 2, target)
        self.assertEqual(self.run_command("migrate").exit_code, 2)
        self.operations.refusal = "nobody answers there"
        result = self.run_command("migrate", "h:1")
        self.assertEqual(result.exit_code, 1)
        self.assertIn("nobody answers there (MIGRATION_REFUSED)", result.output)

    def test_reload(self) -> None:
        """What has changed is named; where something is wrong, that is."""
        self.assertIn("changed: ping.interval\nonly at a restart: http.port", self.output("reload"))
        self.operations.refusal = "ping.interval: must be a number"
        result = self.run_command("reload")
        self.assertEqual(result.exit_code, 1)
        self.assertIn("ping.interval", result.output)


class ReachTests(OperatorCase):
    """Which server is asked, and with which token."""

    def test_place(self) -> None:
        """Without options: this machine, as the settings say; the secrets' token."""
        config = self.directory / "domaeka.toml"
        config.write_text('[http]\nport = 8081\ninterface = "::"\n')
        self.output("bans")
        self.output("bans", "--config", str(config))
        self.output("bans", "--url", "https://chat.example/under/")
        token = load_or_create_secrets(self.directory).admin_token
        self.assertEqual(
            self.places,
            [
                ("http://127.0.0.1:8080", token),
                ("http://[::1]:8081", token),
                ("https://chat.example/under/", token),
            ],
        )

    def test_token_file(self) -> None:
        """A file with the token alone; nothing else passes for one."""
        file = self.directory / "token"
        file.write_text("opensesame\n")
        self.output("bans", "--url", "http://chat.example", "--token-file", str(file))
        self.assertEqual(self.places, [("http://chat.example", "opensesame")])
        for text in ("", 'admin_token = "x"', "열쇠", "a\x01b", "x" * 5000):
            file.write_text(text)
            result = self.run_command("bans", "--token-file", str(file))
            self.assertEqual((result.exit_code, len(result.output.splitlines())), (1, 1), text)

    def test_no_token_for_strangers(self) -> None:
        """The local token goes to another machine only where that was said."""
        (self.directory / "domaeka").symlink_to(self.directory.absolute())
        desk = Desk(self.reach)
        environment = {"XDG_STATE_HOME": str(self.directory.absolute()), "STATE_DIRECTORY": None}
        for url, status in (("http://chat.example", 2), ("http://localhost:1", 0)):
            arguments = ["bans", "--url", url]
            result = CliRunner().invoke(main, arguments, obj=desk, env=environment)
            self.assertEqual(result.exit_code, status, result.output)

    def test_wrong_places(self) -> None:
        """What is no address of a server is a wrong use."""
        for url in (
            "localhost:8080",
            "ftp://x",
            "http://",
            "http://h:x",
            "http://[",
            "http://h?q",
            "http://h/ x",
        ):
            self.assertEqual(self.run_command("bans", "--url", url).exit_code, 2, url)

    def test_wrong_token(self) -> None:
        """A token that is not taken, a server that is away: each has its exit status."""
        self.site.token = b"another"
        result = self.run_command("status")
        self.assertEqual(result.exit_code, 4)
        self.assertIn("--token-file names another", result.output)
        self.away = True
        result = self.run_command("status")
        self.assertEqual((result.exit_code, result.output), (3, "Error: cannot reach it\n"))
        (self.directory / "secrets.toml").unlink()
        result = self.run_command("status")
        self.assertEqual(result.exit_code, 1)
        self.assertIn("start the server once, or give --state-dir or --token-file", result.output)


class TextTests(SynchronousTestCase):
    """Texts of strangers."""

    @given(st.text(st.characters(exclude_categories=["Cs"])), st.booleans())
    def test_json(self, text: str, ascii_only: bool) -> None:
        """Whatever a name holds, JSON says the same, and a terminal has nothing to obey."""
        written = escaped_json(msgspec.json.encode({"name": text}).decode(), ascii_only)
        self.assertEqual(json.loads(written), {"name": text})
        self.assertTrue(written.isprintable())
        self.assertTrue(written.isascii() or not ascii_only)

    @given(st.text())
    def test_one_line(self, text: str) -> None:
        """Whatever a name holds, it stays in its line and commands nothing."""
        self.assertTrue(one_line(text).isprintable())

    def test_figures(self) -> None:
        """Figures are short enough for a table."""
        self.assertEqual(
            [duration(s) for s in (0.4, 59, 61, 3700, 90_000)],
            [
                "0 s",
                "59 s",
                "1 m",
                "1 h 1 m",
                "1 d 1 h",
            ],
        )
        self.assertEqual(
            [size(n) for n in (0, 1023, 1536, 5 * 2**30)],
            [
                "0 B",
                "1023 B",
                "1.5 KiB",
                "5.0 GiB",
            ],
        )
        self.assertEqual([milliseconds(s) for s in (None, 0.0012, 0.25)], ["", "1.2 ms", "250 ms"])
