"""
Tests for L{domaeka.gateway.directory.local}, and for the API over a directory that answers late.
"""

from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred

from domaeka.gateway.conversation import Conversation
from domaeka.gateway.directory.local import LocalDirectory
from domaeka.interfaces import DeviceKey, Directory
from domaeka.schema import ConnectionsQuery
from domaeka.wire import Reply
from tests.api_case import ApiCase, path_of, replies
from tests.gateway_case import KEY


class LateDirectory:
    """Answers everything in another turn of the reactor, as if another server had to be asked."""

    def __init__(self, directory: LocalDirectory, clock: Any) -> None:
        self._directory = directory
        self._clock = clock

    def __getattr__(self, name: str) -> Any:
        def ask(*arguments: Any) -> "Deferred[Any]":
            answer = maybeDeferred(getattr(self._directory, name), *arguments)
            late: Deferred[Any] = Deferred()
            self._clock.callLater(0, answer.chainDeferred, late)
            return late

        return ask


class LocalDirectoryTests(ApiCase):
    """What a server that stands alone answers."""

    def test_describes_only_what_is_shown(self) -> None:
        """However many are connected, only those of the page are looked at closely."""
        for number in range(5):
            self.ready(DeviceKey("봇", f"d{number}"))
        described: list[object] = []
        view = Conversation.view

        def counted(conversation: Conversation) -> Any:
            described.append(conversation)
            return view(conversation)

        self.patch(Conversation, "view", counted)
        page = self.directory.for_api(self.stored_rooms).connections(
            ConnectionsQuery(sort="device", limit=2)
        )
        self.assertEqual([one.device for one in page.connections], ["d0", "d1"])
        self.assertEqual((page.total, len(described)), (5, 2))

    def test_presence(self) -> None:
        """Who is connected, who is known and away, who is not known: each with what waits."""
        directory = self.directory.for_api(self.stored_rooms)
        away, stranger = DeviceKey("봇", "away"), DeviceKey("봇", "stranger")
        self.ready(away).drop()
        self.ready()
        self.run_for(5.0)
        self.device(away).send(Reply("방", None, away.bot_name, "안녕"))
        here, gone, unknown = directory.presence([KEY, away, stranger])
        self.assertTrue(here.is_connected)
        assert here.heard_at is not None
        self.assertLess(abs(self.wall() - 5.0 - here.heard_at), 1.1)
        self.assertEqual((gone.is_connected, gone.heard_at, gone.queue.messages), (False, None, 1))
        self.assertEqual((unknown.is_connected, unknown.queue.messages), (False, 0))

    def test_presence_silent(self) -> None:
        """Who acknowledges nothing for a minute is away, though late lines are waited for."""
        self.ready()
        self.server.accepted[-1].silence()
        self.run_for(130.0)
        (presence,) = self.directory.for_api(self.stored_rooms).presence([KEY])
        self.assertFalse(presence.is_connected)
        self.assertEqual(len(self.conversations()), 1)


class LateDirectoryTests(ApiCase):
    """The API waits for a directory that answers later."""

    def make_directory(self) -> Directory:
        return LateDirectory(super().make_directory(), self.clock)  # type: ignore[arg-type]

    def test_connections(self) -> None:
        """Pages of connections, one of them, and those that have ended."""
        for number in range(3):
            self.ready(DeviceKey("봇", f"d{number}"))
        self.ready(DeviceKey("봇", "gone")).drop()
        page = self.get("/connections", limit=2, sort="device")
        self.assertEqual((len(page["connections"]), page["total"]), (2, 3))
        rest = self.get("/connections", limit=2, sort="device", after=page["next"])
        self.assertEqual([one["device"] for one in rest["connections"]], ["d2"])
        self.assertEqual(self.get("/connections" + path_of("봇", "d1"))["device"], "d1")
        self.assertEqual(self.refusal("GET", "/connections" + path_of("봇", "gone"))[0], 404)
        (closed,) = self.get("/connections/closed")["connections"]
        self.assertEqual(closed["device"], "gone")

    def test_devices(self) -> None:
        """Whether a device is connected, and that one that is cannot be forgotten."""
        peer = self.ready()
        path = "/devices" + path_of(*KEY)
        self.assertTrue(self.get(path)["connected"])
        self.assertEqual(self.refusal("DELETE", path)[:2], (409, "CONNECTED"))
        peer.drop()
        self.assertEqual(self.ask("DELETE", path), (204, None))
        self.assertEqual(self.get("/devices")["devices"], [])

    def test_messages(self) -> None:
        """A message is taken, or refused, and asked after."""
        peer = self.heard(KEY)
        message = {"bot": KEY.bot_name, "room": "방", "text": "안녕"}
        status, body = self.ask("POST", "/messages", message)
        self.assertEqual(status, 202)
        self.run_for(0.0)
        self.assertEqual([reply.content for reply in replies(peer)], ["안녕"])
        self.assertEqual(self.get("/messages" + path_of(body["id"]))["state"], "sent")
        refused = self.refusal("POST", "/messages", message | {"device": "other"})
        self.assertEqual(refused[:2], (409, "NO_PHONE"))
        self.assertEqual(self.refusal("GET", "/messages/none")[0], 404)

    def test_bans(self) -> None:
        """A ban ends the connections of its network."""
        peer = self.ready()
        self.assertEqual(self.ask("POST", "/bans", {"network": "192.0.2.0/24"})[0], 201)
        self.run_for(1.0)
        self.assertTrue(peer.finished or peer.lost)
