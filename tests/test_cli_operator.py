"""Tests for the operator's commands of L{domaeka.cli}, against the API itself."""

import json
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from rich.cells import cell_len
from twisted.python.failure import Failure

from domaeka.cli import main
from domaeka.cli.api_client import ApiClient
from domaeka.cli.places import Exchange, Listen, Place, Unreachable
from domaeka.cli.views import _EVENTS, event_line
from domaeka.gateway.lifecycle import DrainReport, MigrationReport
from domaeka.interfaces import Approval, DeviceKey, HealthCheck, RoomKey
from domaeka.local_socket import SOCKET_NAME, local_path, open_directory
from domaeka.phone_script import SCRIPT_VERSION
from domaeka.schema import EVENT_TYPES, Phase
from domaeka.secrets import load_or_create_secrets
from domaeka.web.health import HealthPages
from domaeka.web.server import Site
from tests.api_case import ROOM_ID, TOKEN, ApiCase, Client, path_of, replies
from tests.gateway_case import KEY, PICTURE

BOT = KEY.bot_name
#: The length of a chunk, or nothing.
HEXADECIMAL = re.compile(rb"[0-9a-f]*")


class OperatorCase(ApiCase):
    """
    A gateway with its pages, and the command.

    @ivar meanwhile: what happens in each pause of the command.
    """

    def setUp(self) -> None:
        super().setUp()
        self.emptied = False
        self.checks: dict[str, HealthCheck] = {"store": lambda: None}
        self.pages = HealthPages(
            self.metrics,
            self.clock,
            self.checks,
            listening=lambda: True,
            draining=lambda: self.emptied or self.operations.drain_report.running,
            wall=self.wall,
        )
        routes = (*self.pages.routes(), *self.api.routes())
        self.site = Site(routes, self.clock, self.metrics, lambda: TOKEN, wall=self.wall)
        self.folder = Path(self.mktemp())
        self.folder.mkdir(mode=0o700)
        load_or_create_secrets(self.folder)
        self.meanwhile: list[Any] = []
        self.places: list[tuple[str, str]] = []
        self.away = False
        self.answers: list[str] = []  # of somebody at the terminal

    def reach(self, place: Place) -> Exchange:
        """What reaches the gateway, wherever it is looked for."""
        there = place.url.geturl() if place.directory is None else str(place.directory)
        self.places.append((there, place.token))

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

    def listen(self, place: Place) -> Listen:
        """
        What hears from the gateway: the events of what happens C{meanwhile}, one after the other;
        then the stream ends.
        """

        def lines(client: Client) -> Iterator[bytes]:
            waiting = b""
            while True:
                waiting += client.transport.value()
                client.transport.clear()
                *whole, waiting = waiting.split(b"\r\n")  # of chunks: a length, then what it has
                for piece in whole:
                    if not HEXADECIMAL.fullmatch(piece):
                        yield from piece.splitlines(keepends=True)
                if not self.meanwhile:
                    yield waiting  # of an answer in one piece
                    return
                self.meanwhile.pop(0)()
                self.run_for(0.0)

        def listen(target: str) -> tuple[int, Iterator[bytes]]:
            if self.away:
                raise Unreachable("cannot reach it")
            client = self.connect_client()
            client.request("GET", target, {"Authorization": f"Bearer {TOKEN}"})
            self.run_for(0.0)
            head, _, rest = client.transport.value().partition(b"\r\n\r\n")
            client.transport.clear()
            client.transport.write(rest)
            return int(head.split()[1]), lines(client)

        return listen

    def pause(self, seconds: float) -> None:
        """What happens while the command waits; Ctrl-C where nothing does."""
        if not self.meanwhile:
            raise KeyboardInterrupt
        self.meanwhile.pop(0)()
        self.run_for(seconds)

    def run_command(self, *arguments: str, stdin: str | bytes | None = None) -> Result:
        """Run the command."""
        api = ApiClient(self.reach, self.pause, self.listen)
        if self.answers:
            api.at_terminal, stdin = (lambda: True), "".join(self.answers)
        environment = {
            "XDG_STATE_HOME": str(self.folder),
            **dict.fromkeys(("STATE_DIRECTORY", "DOMAEKA_URL", "DOMAEKA_TOKEN_FILE")),
        }
        token = () if "--token-file" in arguments else ("--state-dir", str(self.folder))
        return CliRunner().invoke(main, [*arguments, *token], obj=api, env=environment, input=stdin)

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
        self.checks["clock"] = lambda: "this server's clock is 3600 s behind"
        shown = " ".join(self.output("status").split())  # it succeeds, too
        self.assertIn("clock this server's clock is 3600 s behind", shown)
        self.operations.drain("operator")
        result = self.run_command("status")
        self.assertEqual(result.exit_code, 1)
        self.assertIn("draining: 3 phones told", result.stdout)

    def test_connections(self) -> None:
        """Those that are open, one of them with all that is known, those that have ended."""
        peer = self.heard(KEY)
        self.assertIn(KEY.device_id, self.output("connections", "--sort", "score"))
        pinger = self.conversation()._keepalive
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

    def test_bots(self) -> None:
        """What the bots answer to, how often it was asked for, and what is left alone."""
        self.metrics.handler_failures.labels("# 가격").inc()
        lines = self.output("bots").splitlines()
        (price,) = (line.split() for line in lines if "# 가격" in line)
        self.assertEqual(price, ["가게", "#", "가격", "#", "price", "all", "0", "1", "closed"])
        self.assertIn("domaeka", lines[1])
        found = {bot["name"]: bot["commands"] for bot in self.json("bots")["bots"]}
        self.assertEqual([one["name"] for one in found["가게"]], ["# 가격"])

    def test_events(self) -> None:
        """What happens, a line each; for scripts an object a line."""
        for options in ((), ("--json",)):
            self.meanwhile = [
                lambda: self.heard(KEY).drop(),
                lambda: self.ask("POST", "/bans", {"network": "192.0.2.99", "reason": "a\x1b[2J"}),
                lambda: self.ask("DELETE", "/bans", network="192.0.2.99"),
                lambda: self.ask("DELETE", "/rooms" + path_of(BOT, ROOM_ID)),
                lambda: self.api.events.changed("drain", "begun"),
            ]
            self.patch(self, "pause", self.interrupt)
            result = self.run_command("events", *options)
            self.assertEqual(result.exit_code, 0, result.output)
            lines = result.stdout.splitlines()
            if options:
                names = [json.loads(line)["event"] for line in lines]
                self.assertEqual(
                    names, ["connected", "closed", "ban", "lifted", "forgotten", "drain"]
                )
                self.assertEqual(json.loads(lines[0])["device"], KEY.device_id)
            else:
                self.assertIn(f"connected  {BOT} {KEY.device_id} from ", lines[0])
                self.assertIn("connection lost, after 0 s, 1 in, 0 out", lines[1])
                self.assertTrue(lines[2].endswith(": a\ufffd[2J"), lines[2])
                self.assertIn(f"room {BOT} {ROOM_ID}", lines[4])
            self.assertTrue(all(line.isprintable() for line in lines))
            self.assertIn("the server has ended the stream; trying again", result.stderr)

    def interrupt(self, seconds: float) -> None:
        """Ctrl-C."""
        raise KeyboardInterrupt

    def test_events_of_a_newer_server(self) -> None:
        """An event that is not known here is shown with all that it says."""
        line = event_line("eclipse", {"at": "2026-11-22T12:00:31.408Z", "moon": "new"}, 0.0)
        self.assertIn("eclipse", line)
        self.assertIn("moon new", line)

    def test_events_of_strangers(self) -> None:
        """What is no stream of ours, or says nonsense, ends the command in a line."""
        for lines, status in (
            ([b"<html>\n"], 3),
            ([], 3),
            ([b": x\n", b"event: ban\n", b"data: [1]\n"], 1),
            ([b": x\n", b"event: ban\n", b'data: {"network": 5, "at": 7}\n'], 0),
        ):
            self.patch(self, "listen", lambda place, lines=lines: lambda _: (200, iter(lines)))
            result = self.run_command("events")
            self.assertEqual(result.exit_code, status, result.output)
            self.assertEqual(len(result.output.splitlines()), 1 + (status == 0), result.output)

    def test_every_event_is_shown(self) -> None:
        """Every event that the API has is known here."""
        self.assertEqual(_EVENTS.keys(), EVENT_TYPES.keys())

    def test_events_again(self) -> None:
        """A server that goes away is waited for; one that was never there, or refuses, is not."""
        self.meanwhile = [lambda: setattr(self, "away", True)]
        paused: list[float] = []

        def pause(seconds: float) -> None:
            paused.append(seconds)
            self.away = len(paused) < 3
            if len(paused) == 5:
                raise KeyboardInterrupt

        self.patch(self, "pause", pause)
        result = self.run_command("events")
        self.assertEqual(result.exit_code, 0, result.output)
        self.assertEqual(paused, [1.0, 2.0, 4.0, 1.0, 1.0])
        self.assertIn("cannot reach it; trying again", result.stderr)
        self.assertEqual(result.stderr.count("connected again"), 2)
        self.away = True
        self.assertEqual(self.run_command("events").exit_code, 3)
        self.away = False
        self.site.token = lambda: "another"
        self.assertEqual(self.run_command("events").exit_code, 4)

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

    def test_old_scripts(self) -> None:
        """Phones with old scripts are marked, and the way to the new one stands below."""
        self.ready(KEY)
        self.ready(DeviceKey(BOT, "new"), version=SCRIPT_VERSION)
        shown = self.output("devices")
        (old,) = (line for line in shown.splitlines() if "(old script)" in line)
        self.assertIn(KEY.device_id, old)
        self.assertEqual(
            shown.splitlines()[-1],
            "1 phone has an old script: domaeka phone-script writes the new one (docs/phones.md)",
        )
        devices = self.json("devices")["devices"]
        self.assertEqual({one["device"]: one["outdated"] for one in devices}["new"], False)
        (found,) = self.json("devices", "--outdated")["devices"]
        self.assertEqual((found["device"], found["outdated"]), (KEY.device_id, True))
        self.ready(KEY, version=SCRIPT_VERSION)
        self.assertNotIn("old script", self.output("devices"))
        self.assertEqual(self.json("devices", "--outdated")["devices"], [])

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

    def test_never_seen(self) -> None:
        """
        Nobody is approved by a slip of the pen: one that was never seen needs a yes, or C{--new}.
        """
        self.heard(KEY)
        for kind in ("devices", "rooms"):
            result = self.run_command(kind, "approve", BOT, "slip")
            self.assertEqual((result.exit_code, len(result.stderr.splitlines())), (1, 1))
            self.assertIn("slip was never seen", result.stderr)
            self.assertIn("--new", result.stderr)
            self.answers = ["n\n"]
            self.assertEqual(self.run_command(kind, "approve", BOT, "slip").exit_code, 1)
            self.answers = []
            names = [one[kind[:-1]] for one in self.json(kind)[kind]]
            self.assertNotIn("slip", names)
            self.output(kind, "approve", BOT, "first", "--new")
            self.answers = ["y\n"]
            self.output(kind, "approve", BOT, "second")
            self.answers = []
            self.output(kind, "block", BOT, "third")
            names = [one[kind[:-1]] for one in self.json(kind)[kind]]
            self.assertTrue({"first", "second", "third"} <= set(names), names)
            # What only an operator has entered was not seen either.
            self.assertEqual(self.run_command(kind, "approve", BOT, "third").exit_code, 1)
        self.output("devices", "approve", BOT, KEY.device_id)
        self.output("rooms", "approve", BOT, "방")

    def test_forget(self) -> None:
        """What is gone for good is forgotten, one after the other; a connected one is named."""
        peer = self.heard(KEY)
        result = self.run_command("devices", "forget", BOT, KEY.device_id, "never")
        self.assertEqual((result.exit_code, len(result.stderr.splitlines())), (1, 2))
        self.assertIn("is connected", result.stderr)
        peer.drop()
        self.assertIn(f"{KEY.device_id}: forgotten", self.output("devices", "forget", *KEY))
        self.assertEqual(self.json("devices")["devices"], [])
        self.assertEqual(self.json("rooms", "forget", BOT, "방"), {"forgotten": "방"})
        self.assertEqual(self.json("rooms")["rooms"], [])
        self.assertEqual(self.forgotten_chat, [])
        self.heard(KEY).drop()
        self.output("devices", "forget", *KEY, "--chat-log")
        self.output("rooms", "forget", BOT, ROOM_ID, "--chat-log")
        self.assertEqual(self.forgotten_chat, [(BOT, KEY.device_id, None), (BOT, None, ROOM_ID)])

    def test_large_bans(self) -> None:
        """A ban of half a country, or of one's own phones, needs a yes, or C{--yes}."""
        for network in ("10.0.0.0/15", "0.0.0.0/0", "2001:db8::/31", "::ffff:10.0.0.0/111"):
            result = self.run_command("bans", "add", network)
            self.assertEqual((result.exit_code, len(result.stderr.splitlines())), (1, 1))
            self.assertIn("is larger than /", result.stderr)
            self.assertIn("--yes", result.stderr)
        self.answers = ["n\n"]
        self.assertEqual(self.run_command("bans", "add", "10.0.0.0/15").exit_code, 1)
        self.answers = []
        self.assertEqual(self.json("bans")["total"], 0)
        for network in ("10.0.0.0/16", "2001:db8::/32", "198.51.100.7"):
            self.output("bans", "add", network)
        self.output("bans", "add", "172.0.0.0/8", "--yes")
        self.answers = ["y\n"]
        self.output("bans", "add", "11.0.0.0/8")
        self.answers = []
        self.assertEqual(self.json("bans")["total"], 5)

    def test_bans_of_phones(self) -> None:
        """Who bans phones that are connected is told which; strangers are banned unasked."""
        self.heard(KEY)
        address = self.conversation().peer.address
        result = self.run_command("bans", "add", address)
        self.assertEqual((result.exit_code, len(result.stderr.splitlines())), (1, 1))
        self.assertIn(f"holds 1 connected phone ({BOT} {KEY.device_id})", result.stderr)
        self.assertFalse(self.conversation().peer.closing)
        self.output("bans", "add", address, "--yes")
        self.assertEqual(self.json("connections")["total"], 0)
        self.output("bans", "lift", address)
        self.greeted(DeviceKey("봇", "stranger"))
        self.output("bans", "add", self.conversation().peer.address)

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

    def test_title_that_looks_like_an_id(self) -> None:
        """Digits are an id, whatever title a stranger gives his room."""
        self.heard(KEY, room="55", channel_id="7")
        self.output("rooms", "deny", BOT, "55")
        found = {room["room"]: room["status"] for room in self.json("rooms")["rooms"]}
        self.assertEqual(found, {"55": "denied", "7": "approved"})

    def test_bans(self) -> None:
        """Made, listed and lifted."""
        self.output("bans", "add", "203.0.113.7", "--reason", "floods", "--seconds", "60")
        self.assertIsNone(self.json("bans", "add", "2001:db8::/64", "--forever")["expires"])
        self.assertIn("floods", self.output("bans"))
        state = ("--state-dir", str(self.folder))
        self.output("bans", *state, "--reason", "list", "add", "192.0.2.1")
        self.output("bans", *state, "lift", "192.0.2.1")
        self.assertEqual(self.json("bans")["total"], 2)
        self.output("bans", "lift", "203.0.113.7", "2001:db8::/64")
        self.assertEqual(self.json("bans")["total"], 0)
        self.assertEqual(self.run_command("bans", "lift", "203.0.113.7").exit_code, 1)
        self.assertEqual(self.run_command("bans", "add", "nonsense").exit_code, 1)

    def test_for_whom(self) -> None:
        """Who those said they were that are banned stands in the list, and with the state."""
        self.assertNotIn("more: domaeka bans", self.output("status"))
        for number in range(7):
            for _ in range(5):
                self.context.limits.failed_signature(
                    f"198.51.100.{number}", ("가게\x1b[2J봇", "a1b2")
                )
        self.run_for(15.0)
        for shown in (self.output("bans"), self.output("status")):
            for text in ("198.51.100.0/32", "가게\ufffd[2J봇", "a1b2", "5 wrong signatures"):
                self.assertIn(text, shown)
        self.assertIn("and 2 more: domaeka bans", self.output("status"))
        self.assertEqual(self.json("status")["bans"], 7)


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
        picture = self.folder / "picture.png"
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
        config = self.folder / "domaeka.toml"
        config.write_text('[http]\nport = 8081\ninterface = "::"\n')
        self.output("bans")
        self.output("bans", "--config", str(config))
        self.output("bans", "--url", "https://chat.example/under/")
        token = load_or_create_secrets(self.folder).admin_token
        self.assertEqual(
            self.places,
            [
                ("http://127.0.0.1:8080", token),
                ("http://[::1]:8081", token),
                ("https://chat.example/under/", token),
            ],
        )

    def test_socket(self) -> None:
        """
        The socket of the state directory is preferred, but not to an address that is given; what
        has its name and is no socket is none.
        """
        path = self.folder / SOCKET_NAME
        path.touch()
        self.output("bans")
        self.assertEqual(self.places.pop()[0], "http://127.0.0.1:8080")
        path.unlink()
        with socket.socket(socket.AF_UNIX) as server, open_directory(self.folder) as number:
            server.bind(local_path(self.folder, number))
        self.output("bans")
        self.output("bans", "--url", "http://localhost:1")
        token = load_or_create_secrets(self.folder).admin_token
        self.assertEqual(
            self.places, [(str(self.folder.absolute()), token), ("http://localhost:1", token)]
        )

    def test_token_file(self) -> None:
        """A file with the token alone; nothing else passes for one."""
        file = self.folder / "token"
        file.write_text("opensesame\n")
        self.output("bans", "--url", "http://chat.example", "--token-file", str(file))
        self.assertEqual(self.places, [("http://chat.example", "opensesame")])
        for text in ("", 'admin_token = "x"', "열쇠", "a\x01b", "x" * 5000):
            file.write_text(text)
            result = self.run_command("bans", "--token-file", str(file))
            self.assertEqual((result.exit_code, len(result.output.splitlines())), (1, 1), text)

    def test_environment(self) -> None:
        """C{DOMAEKA_URL} and C{DOMAEKA_TOKEN_FILE} stand in for options, and behind them."""
        token = self.folder / "token"
        token.write_text("opensesame\n")
        local = load_or_create_secrets(self.folder).admin_token
        there = "http://chat.example"
        place = {"DOMAEKA_URL": there}
        file = {"DOMAEKA_TOKEN_FILE": str(token)}
        state = ("--state-dir", str(self.folder))
        config = self.folder / "config.toml"
        config.write_text("[http]\nport = 8081\n")
        refused = None
        here = "http://127.0.0.1:8080"
        for environment, arguments, reached in (
            (place | file, (), (there, "opensesame")),
            (place, (), refused),  # the token of this machine is not for another
            # Plain HTTP would show it to whoever is on the way.
            (place, state, refused),
            (place | file, state, refused),
            ({"DOMAEKA_URL": "https://chat.example"}, state, ("https://chat.example", local)),
            (file, (), (here, "opensesame")),
            (file, ("--url", there), (there, "opensesame")),
            # What goes together in the environment is not mixed with what is given.
            (place | file, ("--url", "http://other.example"), refused),
            (place | file, ("--url", "http://localhost:1", *state), ("http://localhost:1", local)),
            (place | file, ("--config", str(config), *state), ("http://127.0.0.1:8081", local)),
            (
                {"DOMAEKA_URL": "", "DOMAEKA_TOKEN_FILE": ""},
                state,
                ("http://127.0.0.1:8080", local),
            ),
            ({"DOMAEKA_URL": "ftp://x"}, state, refused),
        ):
            self.places.clear()
            clean = {"DOMAEKA_URL": None, "DOMAEKA_TOKEN_FILE": None, "STATE_DIRECTORY": None}
            result = CliRunner().invoke(
                main, ["bans", *arguments], obj=ApiClient(self.reach), env={**clean, **environment}
            )
            self.assertEqual(self.places, [reached] if reached else [], (environment, arguments))
            self.assertEqual(result.exit_code, 0 if reached else 2, result.output)

    def test_settings_that_lie_there(self) -> None:
        """C{./domaeka.toml} says where the server is; one of another is not believed."""
        before = os.getcwd()
        self.addCleanup(os.chdir, before)
        self.folder = self.folder.absolute()
        os.chdir(self.folder)
        config = Path("domaeka.toml")
        config.write_text("[http]\nport = 8081\n")
        config.chmod(0o644)
        self.output("bans")
        self.assertEqual(self.places[-1][0], "http://127.0.0.1:8081")
        config.chmod(0o666)
        self.places.clear()
        result = self.run_command("bans")
        self.assertEqual((result.exit_code, len(result.output.splitlines())), (1, 1))
        self.assertIn("others may write to it", result.output)
        self.assertEqual(self.places, [])  # nobody was shown the token
        token = Path("token")
        token.write_text("opensesame")
        self.output("bans", "--url", "http://chat.example", "--token-file", "token")

    def test_no_token_for_strangers(self) -> None:
        """The local token goes to another machine only where that was said."""
        (self.folder / "domaeka").symlink_to(self.folder.absolute())
        api = ApiClient(self.reach)
        environment = {"XDG_STATE_HOME": str(self.folder.absolute()), "STATE_DIRECTORY": None}
        for url, status in (("http://chat.example", 2), ("http://localhost:1", 0)):
            arguments = ["bans", "--url", url]
            result = CliRunner().invoke(main, arguments, obj=api, env=environment)
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
        self.site.token = lambda: "another"
        result = self.run_command("status")
        self.assertEqual(result.exit_code, 4)
        self.assertIn("--token-file names another", result.output)
        self.away = True
        result = self.run_command("status")
        self.assertEqual((result.exit_code, result.output), (3, "Error: cannot reach it\n"))
        (self.folder / "secrets.toml").unlink()
        result = self.run_command("status")
        self.assertEqual(result.exit_code, 1)
        self.assertIn("start the server once, or give --state-dir or --token-file", result.output)
