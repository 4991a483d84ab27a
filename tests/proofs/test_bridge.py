"""The bridge script on the phones' own engine, against a real server."""

import base64
import gzip
import hashlib
import os
import re
import subprocess
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509 import load_pem_x509_certificate
from twisted.internet.defer import ensureDeferred, gatherResults
from twisted.trial.unittest import TestCase
from twisted.web.resource import Resource
from twisted.web.server import Site
from twisted.web.static import Data

from tests.integration.picture_bot import picture
from tests.integration.support import (
    HOST,
    PATIENCE_SECONDS,
    ServerProcess,
    cpu_seconds,
    free_port,
    reactor,
    sleep,
)
from tests.integration.test_api import Api
from tests.integration.test_cli import Command
from tests.integration.test_phones import LONG as LONG_TEXT
from tests.integration.test_phones import MESSAGES, ODD_TEXTS, ROOMS
from tests.integration.test_tls import NAME, Authority
from tests.phone_host import HOME, RHINO, SCRIPT, PhoneHost, ScriptedPhone, why_not
from tests.phone_host.case import GIF, BridgeCase
from tests.phone_host.servers import FalseServer, Relay
from tests.proofs import LONG

#: Phones in one JVM.
PHONES = 20
#: Connections that are cut, and the phones that share them.
CUTS = 200 if LONG else 50
CUT_PHONES = 10
#: Time between two messages of one of them: what broken connections carry, in seconds.
PERIOD_SECONDS = 0.1
#: Pictures that a test sends, and how long a phone is to stay in the chat app for them, in ms.
WAIT_MS = 3000
#: What a chat room talks like.
CHAT_MIX = ("ㅋㅋㅋㅋ", "오늘 저녁 뭐 먹지?", "사진 봤어요, 예쁘네요!", "네", "내일 3시에 만나요")
#: The times within which a phone must be back.  Source: docs/phones.md.
NOTICED_SECONDS = 40.0
BACK_SECONDS = 5.0
#: Time for which a reply waits for its room in a test, in ms, and the rooms with their ids.
SHORT_TTL_MS = 4000
REFUSING_ROOMS = {
    "열린 방": "18398338829933621",
    "막힌 방": "18398338829933622",
    "닫힌 방": "18398338829933623",
}
#: What begins a JPEG.
JPEG = b"\xff\xd8\xff\xe0\0\x10JFIF"
#: Messages that wait for a server at most.
QUEUED = 2000
#: What a script removes from texts: control characters, but for tabs and ends of lines.
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def cleaned(text: str) -> str:
    """A text as the script sends it."""
    return CONTROL.sub("", text)


class ChatTests(BridgeCase):
    """Chat and files, while nothing breaks."""

    async def conversation(self, wrap: str, **options: Any) -> None:
        server = await self.serve()
        phone = await self.host(wrap).phone("p1", server, **options)
        await self.connected([phone])
        expected: dict[str, list[str]] = {room: [] for room, _ in ROOMS}
        messages = []
        for number in range(MESSAGES):
            room, channel_id = ROOMS[number % len(ROOMS)]
            text = f"{number} {ODD_TEXTS[number % len(ODD_TEXTS)]}"
            expected[room].append(cleaned(text))
            messages.append(phone.message(f"# echo {text}", room, channel_id))
        phone.say_all(messages)
        phone.say(f"# echo {LONG_TEXT}")
        expected["테스트방"].append(LONG_TEXT)
        phone.say_all([phone.message(f"# echo {LONG_TEXT}", "테스트방")])
        await phone.until(lambda: len(phone.texts()) >= MESSAGES + 2)
        for room, texts in expected.items():
            self.assertEqual(phone.texts(room), texts, room)
        self.assertEqual(phone.texts("방"), [LONG_TEXT])
        self.assertFalse(any("echo" in line for line in phone.log))

    async def test_conversation(self) -> None:
        """
        All is answered exactly, in order in its room, none twice: 200 messages, odd characters,
        60,000 characters; whether Java's strings come as primitives or not.
        """
        for wrap in ("app", "none", "all"):
            await self.conversation(wrap)

    async def test_old_interface(self) -> None:
        """The same by the app's old interface."""
        await self.conversation("app", oldInterface=True)

    async def test_pictures(self) -> None:
        """
        Pictures arrive byte for byte, one and several, in order; meanwhile pings are answered and
        texts are shown.  Afterwards the files are gone.
        """
        server = await self.serve(
            *("--bots", "tests.integration.picture_bot:bot", "--set", "ping.interval=0.5"),
            *("--set", "ping.initial_delay_max=1"),
        )
        phone = await self.host().phone("p1", server)
        await self.connected([phone])
        phone.say(f"# pictures 1 {WAIT_MS}")
        phone.say(f"# pictures 3 {WAIT_MS}")
        await phone.until(lambda: len(phone.of("share")) == 1)
        pongs = await self.pongs(server)
        phone.say("# echo 그동안")
        await phone.until(lambda: phone.texts())
        self.assertEqual(len(phone.of("share")), 1)
        await phone.until(lambda: len(phone.of("share")) == 2)
        self.assertGreaterEqual(await self.pongs(server), pongs + 3)  # one a second
        one, several = phone.of("share")
        self.assertGreater(several["t"] - one["t"], WAIT_MS)
        for share, count in ((one, 1), (several, 3)):
            hashes = [hashlib.sha256(picture(number)).hexdigest() for number in range(count)]
            self.assertEqual([file["sha256"] for file in share["files"]], hashes)
            self.assertTrue(all(file["name"].endswith(".png") for file in share["files"]))
            self.assertEqual(
                (share["mime"], share["pkg"], share["channel"]),
                ("image/png", "com.kakao.talk", "18398338829933617"),
            )
        await sleep(WAIT_MS / 1000 + 2)
        phone.command("event", name="START_COMPILE")
        await sleep(2)
        left = await phone.evaluate(
            "new java.io.File(String(BOT_CONFIG.MEDIA_TEMP_DIR)).list().length"
        )
        self.assertEqual(left, "0")

    async def pongs(self, server: ServerProcess) -> float:
        """The number of pongs that the server has seen."""
        metrics = (await server.get("/metrics"))[1].decode()
        found = re.search(r'frames_received_total\{event="pong"\} (\S+)', metrics)
        assert found is not None
        return float(found[1])

    async def test_many(self) -> None:
        """Twenty phones in one JVM."""
        server = await self.serve()
        host = self.host()
        phones = [await host.phone(f"p{number}", server) for number in range(PHONES)]
        await self.connected(phones)
        for number in range(20):
            for phone in phones:
                phone.say(f"# echo {number}")
        for phone in phones:
            await phone.until(lambda: len(phone.texts()) >= 20)  # noqa: B023
            self.assertEqual(phone.texts(), [str(number) for number in range(20)])

    async def test_deflate(self) -> None:
        """Compression saves 75 % or more of a chat's bytes."""
        spent = []
        for enabled in ("true", "false"):
            server = await self.serve("--set", f"compression.enabled={enabled}")
            relay = Relay(self, server.port)
            host = self.host()
            phone = await host.phone("p1", server, servers=self.behind(relay))
            await self.connected([phone])
            used = cpu_seconds(host.pid)
            before = relay.bytes_up + relay.bytes_down
            for number in range(200):
                phone.say(f"# echo {CHAT_MIX[number % len(CHAT_MIX)]} {number}")
                if number % 10 == 0:
                    await sleep(0.05)
            await phone.until(lambda: len(phone.texts()) >= 200)  # noqa: B023
            await sleep(0.3)
            used = cpu_seconds(host.pid) - used
            print(f"compression {enabled}: {used:.2f} s of processor time for 200 exchanges")
            spent.append(relay.bytes_up + relay.bytes_down - before)
        saved = 1 - spent[0] / spent[1]
        print(f"deflate: {spent[0]} of {spent[1]} bytes, {saved:.1%} saved")
        self.assertGreater(saved, 0.75)


class BreakTests(BridgeCase):
    """Connections that break, servers that go."""

    async def test_cuts(self) -> None:
        """Cut at random, with messages both ways: nothing is lost, nothing doubled."""
        server = await self.serve("--set", "queue.message_ttl=60")
        host = self.host()
        random = Random(5)
        relays = [Relay(self, server.port) for _ in range(CUT_PHONES)]
        phones = [
            await host.phone(f"p{number}", server, servers=self.behind(relay))
            for number, relay in enumerate(relays)
        ]
        await self.connected(phones)
        cuts = 0
        said: Counter[str] = Counter()

        def cutter(relay: Relay) -> None:
            left = random.randrange(1000, 12000)

            def on_data(end: Any) -> None:
                nonlocal left, cuts
                if cuts < CUTS and relay.bytes_up + relay.bytes_down > left:
                    left = relay.bytes_up + relay.bytes_down + random.randrange(1000, 12000)
                    cuts += 1
                    end.cut()

            relay.on_data = on_data

        for relay in relays:
            cutter(relay)
        while cuts < CUTS:
            for phone in phones:
                phone.say(f"# echo {phone.name} {said[phone.name]}")
                said[phone.name] += 1
            await sleep(PERIOD_SECONDS)
        for phone in phones:
            count = said[phone.name]
            await phone.until(lambda: len(phone.texts()) >= count or phone.logged("too long"))  # noqa: B023
            self.assertFalse(phone.logged("waited too long"), phone.name)
            self.assertEqual(phone.texts(), [f"{phone.name} {n}" for n in range(count)])
        print(f"{cuts} cuts, {sum(said.values())} messages")

    async def test_server_restart(self) -> None:
        """A server is started anew: all that was said meanwhile is answered, once."""
        server = await self.serve("--set", "shutdown.reconnect_after=1")
        phone = await self.host().phone("p1", server)
        await self.connected([phone])
        for number in range(20):
            phone.say(f"# echo {number}")
        await server.stop()
        for number in range(20, 40):
            phone.say(f"# echo {number}")
        await server.start()
        await phone.until(lambda: len(phone.texts()) >= 40)
        self.assertEqual(phone.texts(), [str(number) for number in range(40)])
        self.assertTrue(phone.logged("session resumed"))

    async def test_migration(self) -> None:
        """The phone moves to another server before it leaves the old one; nothing is lost."""
        old = await self.serve()
        new = await self.twin(old)
        phone = await self.host().phone("p1", old)
        await self.connected([phone])
        move = {"host": HOST, "port": new.port, "migrate_after": 1.0, "spread": 1.0}
        status, answer = await Api(old).ask("POST", "/migration", move)
        self.assertEqual(status, 202, answer)
        await self.talk_until_moved(phone, new.port)

    async def talk_until_moved(self, phone: ScriptedPhone, port: int) -> None:
        """Talk until the phone has moved, and a little longer: all is answered, in order."""
        number = 0
        while not phone.logged("moved to"):
            phone.say(f"# echo {number}")
            number += 1
            await sleep(0.05)
        for _ in range(10):
            phone.say(f"# echo {number}")
            number += 1
        await phone.until(lambda: len(phone.texts()) >= number)
        self.assertEqual(phone.texts(), [str(each) for each in range(number)])
        self.assertTrue(phone.logged(f"moved to {HOST}:{port}"))

    async def test_return(self) -> None:
        """
        After an outage the phone returns to the server that it prefers.  It leaves the other
        only when it has arrived, and nothing is lost.
        """
        first = await self.serve()
        second = await self.twin(first)
        relay = Relay(self, first.port)
        servers = [*self.behind(relay), {"host": HOST, "port": second.port, "priority": 2}]
        script = self.hurried(RETURN_AFTER=8000)
        phone = await self.host().phone("p1", first, script=script, servers=servers)
        await self.connected([phone])
        self.assertEqual(len(relay.accepted), 1)
        await relay.shut()
        await phone.until(lambda: phone.logged(f"connected to {HOST}:{second.port}"))
        relay.listen()
        await self.talk_until_moved(phone, relay.port)
        moved = next(n for n, line in enumerate(phone.log) if "moved to" in line)
        left = [n for n, line in enumerate(phone.log) if f"from {HOST}:{second.port}" in line]
        self.assertTrue(all(n > moved for n in left))

    async def test_silence(self) -> None:
        """
        A connection that carries nothing more is noticed, though nobody writes.  After a cut of
        30 s, during which somebody writes, phones are back within 5 s.
        """
        server = await self.serve()
        host = self.host()
        await gatherResults(
            [ensureDeferred(part(server, host)) for part in (self.half_open, self.long_cut)]
        )

    async def half_open(self, server: ServerProcess, host: PhoneHost) -> None:
        relay = Relay(self, server.port)
        phone = await host.phone("silent", server, servers=self.behind(relay))
        await self.connected([phone])
        began = reactor.seconds()
        relay.silence()
        await phone.until(lambda: phone.logged("nothing heard"))
        noticed = reactor.seconds() - began
        await self.connected([phone], 2)
        print(f"half-open: noticed after {noticed:.1f} s, back {reactor.seconds() - began:.1f} s")
        self.assertLess(noticed, NOTICED_SECONDS)

    async def long_cut(self, server: ServerProcess, host: PhoneHost) -> None:
        relay = Relay(self, server.port)
        phones = [
            await host.phone(f"p{number}", server, servers=self.behind(relay))
            for number in range(5)
        ]
        await self.connected(phones)
        relay.silence()
        await relay.stop_listening()
        await sleep(10.0)
        for phone in phones:
            phone.say("# echo 다시")
        await sleep(20.0)
        relay.listen()
        began = reactor.seconds()
        times = []
        for phone in phones:
            await phone.until(lambda: phone.texts() == ["다시"])  # noqa: B023
            self.assertEqual(phone.logged(" connected to"), 2)
            times.append(reactor.seconds() - began)
        print("answered after a cut of 30 s:", ", ".join(f"{each:.1f}" for each in times))
        self.assertLess(max(times), BACK_SECONDS)

    async def test_queue(self) -> None:
        """While there is no server 2,000 messages wait, and are sent in order."""
        port = free_port()
        phone = await self.host().boot(
            "p1", self.settings() | {"SERVER_LIST": [{"host": HOST, "port": port}]}
        )
        phone.say_all([phone.message(str(number)) for number in range(QUEUED + 100)])
        await phone.until(lambda: phone.logged("queue is full"))
        server = FalseServer(self, "ack", port=port)
        await self.connected([phone])
        (connection,) = server.connections
        await phone.until(lambda: len(connection.of("message")) >= QUEUED)
        await sleep(0.5)
        ids = [int(message["client_id"].partition("-")[2]) for message in connection.of("message")]
        self.assertEqual(ids, list(range(1, QUEUED + 1)))

    async def test_recompile(self) -> None:
        """
        A script that is compiled anew with messages on their way loses and doubles nothing, and
        leaves no thread behind; nor does one that the app has not told.
        """
        server = await self.serve()
        host = self.host()
        phone = await host.phone("p1", server)
        await self.connected([phone])
        number = 0
        for announced in (True, True, False):
            for _ in range(100):
                phone.say(f"# echo {number}")
                number += 1
            stopped = phone.logged("bridge stops")
            began = reactor.seconds()
            if announced:
                phone.command("event", name="START_COMPILE")
            else:
                await phone.until(lambda: len(phone.texts()) > number - 100)  # noqa: B023
            await host.phone("p1", server)
            await phone.until(lambda: phone.logged("bridge stops") > stopped)  # noqa: B023
            await self.connected([phone], stopped + 2)
            self.assertLess(reactor.seconds() - began, 5.0)
        await phone.until(lambda: len(phone.texts()) >= number)
        await sleep(1.0)
        self.assertEqual(phone.texts(), [str(each) for each in range(number)])
        self.assertEqual(await self.threads(phone), ["engine", "line", "writer"])


class OldServerTests(BridgeCase):
    """A server that knows part 1 of docs/protocol.md only."""

    async def test_no_capability(self) -> None:
        """Chat goes up signed, replies are shown, pings are answered."""
        server = FalseServer(self)
        phone = await self.host().boot("p1", self.settings(server))
        await self.connected([phone])
        (connection,) = server.connections
        phone.say("안녕")
        await phone.until(lambda: connection.of("message"))
        (message,) = connection.of("message")
        self.assertNotIn("client_id", message)
        self.assertEqual(len(message["auth"]["signature"]), 64)
        connection.tell("ping", {"bot_name": "가게봇", "server_timestamp": "t1"})
        await phone.until(lambda: connection.of("pong"))
        self.assertEqual(connection.of("pong")[0]["server_timestamp"], "t1")
        connection.reply("반가워요")
        await phone.until(lambda: phone.texts() == ["반가워요"])

    async def test_gzip(self) -> None:
        """A long text goes up compressed to a server that knows compressed texts only."""
        server = FalseServer(self, "ack", "gzip")
        phone = await self.host().boot("p1", self.settings(server))
        await self.connected([phone])
        (connection,) = server.connections
        for text in (LONG_TEXT, "짧아요"):
            phone.say(text)
        await phone.until(lambda: len(connection.of("message")) == 2)
        long, short = connection.of("message")
        tail, short_tail = connection.tails[-2:]
        plain = LONG_TEXT.encode()
        self.assertEqual(gzip.decompress(base64.b64decode(tail)), plain)
        self.assertEqual(long["content_encoding"], "gzip+base64")
        self.assertEqual(
            (long["content_length"], long["message_positions"]), (len(plain), [0, len(tail)])
        )
        self.assertLess(len(tail), len(plain))
        self.assertEqual(base64.b64decode(short_tail).decode(), "짧아요")
        self.assertEqual(short["content_encoding"], "base64")


class DeliveryTests(BridgeCase):
    """Results of the chat app, which go back to the server."""

    async def test_results(self) -> None:
        """
        What the app says of each reply goes back.  A reply for a room that cannot be answered
        waits for 30 s, and is sent as soon as the room speaks.
        """
        server = FalseServer(self, "ack", "delivery")
        phone = await self.host().boot("p1", self.settings(server))
        await self.connected([phone])
        (connection,) = server.connections
        await phone.evaluate(
            "var open = {'방': true}, bot = BotManager.getCurrentBot(), really = bot.send;"
            "bot.canReply = function (room) { return !!open[String(room)]; };"
            "bot.send = function (room, text) {"
            " if (String(text) === 'no') { return false; } return really(room, text); }; 1"
        )
        connection.reply("하나", message_id=1)
        connection.reply("no", message_id=2)
        connection.reply("둘", "먼 방", message_id=3)
        connection.reply("셋", "먼 방", message_id=4)
        connection.reply("넷", "닫힌 방", message_id=5)
        connection.reply("하나", message_id=1)
        await phone.until(lambda: len(connection.of("delivery")) == 2)
        self.assertEqual(phone.texts(), ["하나"])
        await sleep(1.5)
        await phone.evaluate("open['먼 방'] = true; 1")
        phone.say("여기요", "먼 방")
        await phone.until(lambda: len(connection.of("delivery")) == 4)
        self.assertEqual(phone.texts("먼 방"), ["둘", "셋"])
        self.assertEqual(connection.of("ack")[-1], {"message_id": 5})
        await phone.until(lambda: len(connection.of("delivery")) == 5, 35.0)
        results = {each["message_id"]: each for each in connection.of("delivery")}
        self.assertEqual([results[n]["ok"] for n in range(1, 6)], [True, False, True, True, False])
        self.assertEqual(results[5]["reason"], "no notification")

    async def test_states(self) -> None:
        """
        A real server shows what the app did: the state of each message and its reason, and which
        rooms can be answered, in the API and by C{domaeka rooms}.
        """
        server = await self.serve()
        api = Api(server)
        script = self.hurried(MESSAGE_TTL=SHORT_TTL_MS)
        phone = await self.host().phone("p1", server, script=script)
        await self.connected([phone])
        for room, channel in REFUSING_ROOMS.items():
            phone.say("# echo 여기", room, channel)
        await phone.until(lambda: len(phone.texts()) == len(REFUSING_ROOMS))
        await phone.evaluate(
            "var bot = BotManager.getCurrentBot(), really = bot.send, silent = '닫힌 방';"
            "bot.canReply = function (room) { return String(room) !== silent; };"
            "bot.send = function (room, text) {"
            " return String(room) === '막힌 방' ? false : really(room, text); }; 1"
        )
        sent = {}
        for room, channel in REFUSING_ROOMS.items():
            message = {"bot": "가게봇", "room": room, "channel_id": channel, "text": "밖에서"}
            status, answer = await api.ask("POST", "/messages", message)
            self.assertEqual(status, 202, answer)
            sent[room] = answer["id"]
        await self.message_is(api, sent["열린 방"], "delivered", None)
        await self.message_is(api, sent["막힌 방"], "refused_by_app", "the app refused")
        await self.message_is(api, sent["닫힌 방"], "refused_by_app", "no notification")
        self.assertEqual(phone.texts("닫힌 방"), ["여기"])
        await self.rooms_are(server, {"열린 방": True, "막힌 방": True, "닫힌 방": False})
        await phone.evaluate("silent = null; 1")
        phone.say("# echo 다시", "닫힌 방", REFUSING_ROOMS["닫힌 방"])
        await phone.until(lambda: phone.texts("닫힌 방") == ["여기", "다시"])
        await self.rooms_are(server, dict.fromkeys(REFUSING_ROOMS, True))

    async def message_is(self, api: Api, number: str, state: str, reason: str | None) -> None:
        """Wait until a message has had its report, and compare it."""
        deadline = reactor.seconds() + PATIENCE_SECONDS
        found = await api.get(f"/messages/{number}")
        while found["state"] in ("queued", "sent", "acknowledged"):
            self.assertLess(reactor.seconds(), deadline, found)
            await sleep(0.1)
            found = await api.get(f"/messages/{number}")
        self.assertEqual((found["state"], found["reason"]), (state, reason))

    async def rooms_are(self, server: ServerProcess, answerable: dict[str, bool]) -> None:
        """Compare which rooms can be answered, by the command and by the API."""
        rooms = (await Api(server).get("/rooms"))["rooms"]
        self.assertEqual({one["name"]: one["answerable"] for one in rooms}, answerable)
        place = ("--url", f"http://{HOST}:{server.http_port}", "--state-dir", str(server.state))
        command = Command(self, "rooms", *place)
        self.assertEqual(await command.ended(), 0, command.notes)
        lines = command.out.decode().splitlines()
        for name, can in answerable.items():
            (line,) = (line for line in lines if name in line)
            self.assertEqual(line.split()[-1], "yes" if can else "no", line)


class FileTests(BridgeCase):
    """Files of all kinds."""

    async def test_kinds(self) -> None:
        """
        Each file gets the type and the extension that its first bytes show, or that the server
        names; addresses are fetched; what a script before has left for a week is removed.
        """
        folder = Path(self.mktemp()).absolute()
        folder.mkdir(parents=True)
        old, others = folder / "domaeka_1_1.png", folder / "cat.png"
        for path in (old, others):
            path.write_bytes(b"x")
            os.utime(path, (0, 0))
        root = Resource()
        gif: Any = Data(GIF, "application/octet-stream")
        root.putChild(b"cat.gif", gif)
        site = reactor.listenTCP(0, Site(root), interface=HOST)
        self.addCleanup(site.stopListening)
        address = f"http://{HOST}:{site.getHost().port}/cat.gif?size=1"
        server = FalseServer(self, "ack", "delivery")
        settings = self.settings(server) | {"MEDIA_TEMP_DIR": str(folder)}
        phone = await self.host().boot("p1", settings)
        await self.connected([phone])
        (connection,) = server.connections
        kinds: tuple[tuple[str, str, bytes | str, str, str], ...] = (
            ("image", "png", JPEG, "jpg", "image/jpeg"),
            ("image", "../x", b"?", "png", "image/png"),
            ("image", "", address, "gif", "image/gif"),
            ("audio", "m4a", b"?", "m4a", "audio/mp4"),
            ("video", "mp4", b"\0\0\0\x18ftypisom", "mp4", "video/mp4"),
            ("document", "pdf", b"%PDF-1.7", "pdf", "application/pdf"),
            ("document", "", b"?", "bin", "application/octet-stream"),
        )
        for number, (kind, form, content, _, _) in enumerate(kinds):
            tail = content if isinstance(content, str) else base64.b64encode(content).decode()
            connection.reply(
                "",
                message_id=number,
                tail=tail,
                message_type=kind,
                message_format=form,
                media_wait_time=1,
            )
        gone = f"http://{HOST}:{free_port()}/none.png"
        connection.reply("", message_id=90, tail=gone, message_type="image", media_wait_time=1)
        connection.reply("", message_id=91, tail="QQ==", message_type="image", channel_id=None)
        await phone.until(lambda: len(connection.of("delivery")) == len(kinds) + 2)
        for (_, _, content, extension, mime), share in zip(kinds, phone.of("share"), strict=True):
            plain = GIF if isinstance(content, str) else content
            (file,) = share["files"]
            self.assertEqual(file["sha256"], hashlib.sha256(plain).hexdigest())
            self.assertEqual((file["name"].rpartition(".")[2], share["mime"]), (extension, mime))
        results = {each["message_id"]: each["ok"] for each in connection.of("delivery")}
        self.assertEqual([number for number, ok in results.items() if not ok], [91, 90])
        self.assertEqual((old.exists(), others.exists()), (False, True))

    async def test_stop(self) -> None:
        """Files that wait when the script is compiled anew are reported: one was sent already."""
        server = FalseServer(self, "ack", "delivery")
        phone = await self.host().boot("p1", self.settings(server))
        await self.connected([phone])
        (connection,) = server.connections
        for number in range(3):
            connection.reply(
                "",
                message_id=number,
                tail=base64.b64encode(JPEG).decode(),
                message_type="image",
                media_wait_time=60_000,
            )
        await phone.until(lambda: phone.of("share"))
        phone.command("event", name="START_COMPILE")
        await phone.until(lambda: len(connection.of("delivery")) == 3)
        results = {each["message_id"]: each["ok"] for each in connection.of("delivery")}
        self.assertEqual(results, {0: True, 1: False, 2: False})


class TlsTests(BridgeCase):
    """TLS with a certificate that is checked, or known by its hash."""

    async def test_certificates(self) -> None:
        """A certificate is checked by its authority and its name, or by its hash alone."""
        folder = Path(self.mktemp()).absolute()
        folder.mkdir(parents=True)
        authority = Authority(folder, "authority")
        authority.issue(folder / "server.pem")
        tls_port = free_port()
        server = await self.serve(
            *("--set", f"tls.port={tls_port}", "--set", f"tls.certificate={folder}/server.pem"),
            *("--set", f"tls.key={folder}/server.pem"),
        )
        store = folder / "trusted.p12"
        command = ("keytool", "-importcert", "-noprompt", "-alias", "a", "-storepass", "changeit")
        subprocess.run(
            [*command, "-file", str(authority.path), "-keystore", str(store)],
            check=True,
            capture_output=True,
        )
        hosts = folder / "hosts"
        hosts.write_text(f"{HOST} {NAME} other.example\n")
        host = self.host(
            "app",
            f"-Djavax.net.ssl.trustStore={store}",
            "-Djavax.net.ssl.trustStorePassword=changeit",
            f"-Djdk.net.hosts.file={hosts}",
        )
        pem = (folder / "server.pem").read_bytes()
        pin = load_pem_x509_certificate(pem).fingerprint(SHA256()).hex(":").upper()
        for number, (name, pinned, good) in enumerate(
            (
                (NAME, "", True),
                ("other.example", "", False),
                ("other.example", pin, True),
                ("other.example", pin.replace("A", "B").replace("1", "2"), False),
            )
        ):
            place = {"host": name, "port": tls_port, "tls": True, "pin": pinned}
            phone = await host.phone(f"p{number}", server, servers=[place])
            words = "connected to" if good else "disconnected from"
            await phone.until(lambda: phone.logged(words))  # noqa: B023
            if good:
                phone.say("# echo 안녕")
                await phone.until(lambda: phone.texts() == ["안녕"])  # noqa: B023
            else:
                self.assertFalse(phone.logged(" connected to"))
            phone.command("event", name="START_COMPILE")


class LanguageTests(TestCase):
    """The script's language."""

    skip = why_not()

    def test_es5(self) -> None:
        """Rhino finds nothing in it that is newer than ECMAScript 5."""
        found = subprocess.run(
            [
                *("java", "-cp", str(RHINO), "org.mozilla.javascript.tools.shell.Main"),
                *("-opt", "-1", str(HOME / "es5.js"), str(SCRIPT)),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual((found.returncode, found.stdout, found.stderr), (0, "", ""))
