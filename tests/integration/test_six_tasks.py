"""The bot of six tasks, on a server, with a phone: all but the greeting, which comes at eight."""

from typing import Any

from twisted.trial.unittest import TestCase
from twisted.web.resource import Resource
from twisted.web.server import Site

from tests.integration.support import HOST, ServerProcess, reactor

ROOM = "여섯방"
ROOM_ID = "18338494926958305"


class _Weather(Resource):
    """A weather service."""

    isLeaf = True

    def render_GET(self, request: Any) -> bytes:
        """The weather of a city."""
        city = request.args[b"city"][0].decode()
        return f"{city}은 맑음".encode()


class SixTasksTests(TestCase):
    """Tests for C{tests/integration/six_tasks.py}."""

    timeout = 300

    async def test_on_a_server(self) -> None:
        """Each task is answered; a memo is there after a restart."""
        port: Any = reactor.listenTCP(0, Site(_Weather()), interface=HOST)
        self.addCleanup(port.stopListening)
        server = ServerProcess(self, "--bots", "tests.integration.six_tasks:bot")
        server.environment |= {"WEATHER_URL": f"http://{HOST}:{port.getHost().port}/"}
        await server.start()
        phone = server.phone("0" * 16)
        for text, answers in (
            ("!주사위 1 3", ["1 1 1"]),
            ("!날씨 제주", ["제주: 제주은 맑음"]),
            ("!메모 우유,  달걀", ["적어 두었어요."]),
            ("!소개", ["이름이 뭐예요?"]),
            ("하늘", ["하늘님, 반가워요!"]),
        ):
            phone.record.replies.clear()
            phone.say(text, ROOM, channel_id=ROOM_ID)
            await phone.when_replies(len(answers))
            self.assertEqual(phone.texts(), answers)
        phone.record.replies.clear()
        phone.say("!그림 파랑", ROOM, channel_id=ROOM_ID)
        (picture,) = await phone.when_replies(1)
        self.assertEqual(len(picture.media), 1)
        phone.stop()
        await server.stop()
        await server.start()
        other = server.phone("1" * 16)
        other.say("!메모", ROOM, channel_id=ROOM_ID)
        await other.when_replies(1)
        self.assertEqual(other.texts(), ["우유,  달걀"])
