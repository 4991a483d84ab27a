"""The admin API of a real server, over real sockets, with phones."""

import base64
import json
import re
import socket
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import quote, urlencode

import treq
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from openapi_spec_validator import OpenAPIV31SpecValidator
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase
from twisted.web.client import Agent, HTTPConnectionPool

from domaeka.testing import STANDARD_IDENTITY, FakePhone
from tests.integration.support import HOST, ServerProcess, reactor, sleep

ROOM = "테스트방 {1}/2"
ROOM_ID = "18398338829933617"
DEVICE_ID = "a1b2c3d4e5f60718"
BOT = STANDARD_IDENTITY.bot_name
#: What is said where a path has a name.
NAMES = {"bot": BOT, "device": DEVICE_ID, "room": ROOM_ID, "id": "unknown"}
#: Who holds a role.
ROLE = {"role": "clerk", "channel_id": ROOM_ID, "user_hash": "1a2b"}
#: A body that is right, for each path that takes one.
BODIES = {
    "/devices/{bot}/{device}": {"status": "approved"},
    "/rooms/{bot}/{room}": {"status": "approved"},
    "/messages": {"bot": BOT, "room": ROOM, "text": "하나"},
    "/bans": {"network": "192.0.2.1"},
    "/roles": ROLE,
}
#: What is deleted where the path does not say it.
QUERIES = {"/bans": "?network=192.0.2.1", "/roles": f"?{urlencode(ROLE)}"}
#: A command that takes longer than a test waits.
SLOW_BOT = """
from domaeka import Bot
from twisted.internet.defer import Deferred

bot = Bot("slow")


@bot.command("# slow", reactor=True)
async def slow(ctx):
    await Deferred()
"""
#: Longest that a client waits for anything, in seconds.
PATIENCE = 60


class Api:
    """A client of a server's API."""

    def __init__(self, server: ServerProcess) -> None:
        self._prefix = f"http://{HOST}:{server.http_port}/api/v1"
        self.token = str(server.secrets()["admin_token"])
        pool = HTTPConnectionPool(reactor, persistent=False)
        self._agent = Agent(reactor, connectTimeout=5.0, pool=pool)

    async def ask(
        self, method: str, path: str, value: object = None, token: str | None = None
    ) -> tuple[int, Any]:
        """@return: status, and body: of JSON, what it says."""
        headers: dict[Any, Any] = {"Authorization": f"Bearer {token or self.token}"}
        body = None
        if value is not None:
            headers["Content-Type"] = "application/json"
            body = json.dumps(value).encode()
        response = await treq.request(
            method, self._prefix + path, headers=headers, data=body, agent=cast(Any, self._agent)
        )
        answer = await response.content()
        (kind,) = response.headers.getRawHeaders("Content-Type", [""])
        if kind.startswith("text/javascript"):
            return response.code, answer.decode()
        return response.code, json.loads(answer) if answer else None

    async def get(self, path: str) -> Any:
        """The body of a page that is there."""
        status, body = await self.ask("GET", path)
        assert status == HTTPStatus.OK, body
        return body


class ApiTests(TestCase):
    """What an operator sees and does."""

    timeout = 300

    async def serve(self, *arguments: str) -> tuple[ServerProcess, Api]:
        """A server, and a client of its API."""
        at_once = ("--set", "ping.initial_delay_min=1", "--set", "ping.initial_delay_max=1")
        allowed = ("--set", 'limits.allow=["127.0.0.0/8"]')
        server = ServerProcess(self, *allowed, *at_once, *arguments)
        await server.start()
        return server, Api(server)

    async def heard(self, server: ServerProcess) -> FakePhone:
        """A phone that has said something, and was answered."""
        phone = server.phone(DEVICE_ID)
        phone.say("# echo 하나", ROOM, channel_id=ROOM_ID)
        await phone.when(lambda: phone.texts() == ["하나"])
        return phone

    async def test_every_route(self) -> None:
        """Each operation answers as is described; the description is valid."""
        server, api = await self.serve()
        await self.heard(server)
        document = await api.get("/openapi.json")
        OpenAPIV31SpecValidator(document).validate()
        operations = [
            (path.removeprefix("/api/v1"), method, operation)
            for path, described in document["paths"].items()
            for method, operation in described.items()
        ]
        # What is deleted is asked for before.
        for template, method, operation in sorted(operations, key=lambda one: one[1] == "delete"):
            if template == "/events" or (template in ("/drain", "/migration") and method != "get"):
                continue
            target = re.sub(r"{(\w+)}", lambda found: quote(NAMES[found[1]], safe=""), template)
            if method == "delete":
                target += QUERIES.get(template, "")
            wrong, _ = await api.ask(method.upper(), target, token="wrong")
            self.assertEqual(wrong, HTTPStatus.UNAUTHORIZED, template)
            body = BODIES.get(template) if "requestBody" in operation else None
            status, answer = await api.ask(method.upper(), target, body)
            response = operation["responses"][str(status)]
            refused = template in ("/messages/{id}", "/migration") or (
                (method, template) == ("delete", "/devices/{bot}/{device}")  # it is connected
            )
            self.assertEqual(status >= 400, refused, (template, method, answer))
            if "content" in response:
                ((_, described),) = response["content"].items()
                schema = described["schema"]
                components = {"components": document["components"]}
                Draft202012Validator({**schema, **components}).validate(answer)

    async def test_connection(self) -> None:
        """A phone is seen with its quality while it is there, and with its reason afterwards."""
        server, api = await self.serve()
        phone = await self.heard(server)
        path = f"/connections/{quote(BOT)}/{DEVICE_ID}"
        while not (found := await api.get(path))["quality"]["rtt"]:
            await sleep(0.05)
        self.assertEqual((found["address"], found["state"]), (HOST, "ready"))
        self.assertEqual(found["messages"], {"received": 1, "sent": 1})
        self.assertGreater(found["quality"]["rtt"]["p95"], 0.0)
        await phone.stop()
        while (await api.ask("GET", path))[0] != HTTPStatus.NOT_FOUND:
            await sleep(0.05)
        (ended,) = (await api.get("/connections/closed"))["connections"]
        self.assertEqual((ended["id"], ended["device"]), (found["id"], DEVICE_ID))
        self.assertIn(ended["reason"], ("peer closed", "connection lost"))

    async def test_messages(self) -> None:
        """A text and a large picture reach the room; what became of them is known."""
        server, api = await self.serve()
        phone = await self.heard(server)
        picture = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4000
        ids = []
        for content in (
            {"text": "밖에서 온 말"},
            {"media": [{"base64": base64.b64encode(picture).decode()}], "media_wait_time": 1},
        ):
            status, body = await api.ask("POST", "/messages", {"bot": BOT, "room": ROOM} | content)
            self.assertEqual(status, HTTPStatus.ACCEPTED, body)
            ids.append(body["id"])
        replies = await phone.when_replies(3)
        self.assertEqual(replies[1].text, "밖에서 온 말")
        self.assertEqual(replies[2].contents, [picture])
        states = [(await api.get(f"/messages/{one}"))["state"] for one in ids]
        self.assertEqual(states, ["sent", "sent"])

    async def test_blocked_at_once(self) -> None:
        """A device that is blocked is answered no more, on the connection that it has."""
        server, api = await self.serve()
        phone = await self.heard(server)
        path = f"/devices/{quote(BOT)}/{DEVICE_ID}"
        await api.ask("PATCH", path, {"status": "blocked"})
        phone.say("# echo 둘", ROOM, channel_id=ROOM_ID)
        await sleep(0.5)
        await api.ask("PATCH", path, {"status": "approved"})
        phone.say("# echo 셋", ROOM, channel_id=ROOM_ID)
        await phone.when(lambda: "셋" in phone.texts())
        self.assertEqual(phone.texts(), ["하나", "셋"])

    async def test_events(self) -> None:
        """What happens is told while it happens, until the server ends."""
        server, api = await self.serve()
        client = socket.create_connection((HOST, server.http_port), timeout=PATIENCE)
        self.addCleanup(client.close)
        client.sendall(
            b"GET /api/v1/events HTTP/1.1\r\nAuthorization: Bearer %b\r\n\r\n" % api.token.encode()
        )

        def read_until(found: bytes) -> bytes:
            heard = b""
            while found not in heard:
                data = client.recv(65536)
                assert data, heard
                heard += data
            return heard

        await deferToThread(read_until, b": domaeka")
        await self.heard(server)
        heard = await deferToThread(read_until, b"event: connected")
        self.assertIn(DEVICE_ID.encode(), heard)
        server.signal("TERM")
        heard = await deferToThread(read_until, b"0\r\n\r\n")
        self.assertIn(b"event: drain", heard)
        self.assertIn(b'"reason":"shutdown"', heard)

    async def test_drain_called_off(self) -> None:
        """A stop that waits for an answer can be called off: the phone notices nothing."""
        server = ServerProcess(self, "--bots", "slow_bot:bot", "--set", "shutdown.drain_timeout=8")
        (server.directory / "slow_bot.py").write_text(SLOW_BOT, "utf-8")
        await server.start()
        api = Api(server)
        phone = await self.heard(server)
        phone.say("# slow", ROOM, channel_id=ROOM_ID)
        while not (await api.get("/connections"))["connections"][0]["queue"]["unanswered"]:
            await sleep(0.02)
        status, state = await api.ask("POST", "/drain")
        self.assertEqual((status, state["draining"], state["told"]), (202, True, 1))
        self.assertEqual((await server.get("/health/ready"))[0], 503)
        refused, _ = await api.ask("POST", "/messages", {"bot": BOT, "room": ROOM, "text": "말"})
        self.assertEqual(refused, 503)
        self.assertEqual((await api.ask("DELETE", "/drain"))[0], 200)
        phone.say("# echo 둘", ROOM, channel_id=ROOM_ID)
        await phone.when(lambda: "둘" in phone.texts())
        # The first of two signals, of which the second cuts short what is still owed.
        server.signal("TERM")
        await sleep(0.7)

    async def test_drain(self) -> None:
        """A stop that is not called off ends the process, and is said once."""
        server, api = await self.serve()
        await self.heard(server)
        self.assertEqual((await api.ask("POST", "/drain"))[0], 202)
        while "Server Shut Down" not in server.output():
            await sleep(0.05)
        for said in ("draining: ", " drained"):
            self.assertEqual(server.output().count(said), 1, said)
