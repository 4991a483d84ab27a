"""Unmodified phones of each version in the field, against a real server."""

from collections.abc import Callable, Iterable
from functools import partial

from twisted.internet.defer import gatherResults
from twisted.trial.unittest import TestCase

from domaeka.store.devices import WRITE_SECONDS
from domaeka.testing import SCRIPTS, FakePhone
from domaeka.wire import Dialect
from tests.integration.support import ServerProcess, sleep

#: Rooms in which the phones chat: name and channel id.
ROOMS = (
    ("테스트방", "18398338829933617"),
    ("옆방 {1}", "18398338829933618"),
    ("이름뿐인 방", None),
    ("🏠", "18398338829933619"),
)
ODD_TEXTS = (
    "이모지 👋🏽 👨‍👩‍👧‍👦 \u200d\ufe0f",
    '} { "따옴표" }} {"event":"ping","data":{}} \\',
    "줄\n바꿈\r\n둘\n\n 앞뒤 빈칸 \t ",
    "https://example.org/그림.png|||IMAGE_BASE64:",
    "\x00\x1f\u2028\u2029\ufeff끝",
)
MESSAGES = 200
LONG = "한" * 59_000 + "👋" * 1000
#: What is said at least so far apart is never signed alike.  Source: docs/protocol.md, "auth".
APART_SECONDS = 0.002
#: Phones behind one address.
MANY = 100
#: How long a test waits for what must not come, in seconds.
SETTLE_SECONDS = 0.5


async def until(phones: Iterable[FakePhone], condition: Callable[[FakePhone], bool]) -> None:
    """Wait until something holds for all of C{phones}."""
    await gatherResults([phone.when(partial(condition, phone)) for phone in phones])


class PhoneTests(TestCase):
    """What a phone of each version gets, its script unmodified but for its settings."""

    timeout = 300

    async def serve(self, *arguments: str) -> ServerProcess:
        """A server that takes any number of phones from here."""
        server = ServerProcess(self, "--set", 'limits.allow=["127.0.0.0/8"]', *arguments)
        await server.start()
        return server

    async def test_conversation(self) -> None:
        """
        All is answered exactly, in order in its room, none twice: 200 messages, odd characters,
        60,000 characters, a line that comes twice, and one after the script was reloaded.
        """
        server = await self.serve()
        phones = server.phones(SCRIPTS, reconnect_scale=0.25)
        await until(phones.values(), lambda phone: phone.online)
        expected: dict[str, list[str]] = {room: [] for room, _ in ROOMS}
        for number in range(MESSAGES):
            room, channel_id = ROOMS[number % len(ROOMS)]
            text = f"{number} {ODD_TEXTS[number % len(ODD_TEXTS)]}"
            expected[room].append(text)
            for phone in phones.values():
                phone.say(f"# echo {text}", room, channel_id)
                if number % 50 == 0:
                    phone.repeat()
        for phone in phones.values():
            phone.say(f"# echo {LONG}")
        expected["테스트방"].append(LONG)
        await until(phones.values(), lambda phone: len(phone.replies) > MESSAGES)
        for phone in phones.values():
            phone.reload()
        await until(phones.values(), lambda phone: len(phone.record.connects) == 2)
        await sleep(1.0 + SETTLE_SECONDS)  # until the old run has died
        for phone in phones.values():
            phone.say("# echo 다시")
        expected["테스트방"].append("다시")
        await until(phones.values(), lambda phone: len(phone.replies) > MESSAGES + 1)
        await sleep(SETTLE_SECONDS)
        for script, phone in phones.items():
            for room, texts in expected.items():
                self.assertEqual(phone.texts(room), texts, script)
            self.assertEqual(phone.record.dropped, [], script)
            channels = {(reply.room, reply.channel_id) for reply in phone.replies}
            self.assertEqual(channels, set(ROOMS), script)

    async def restart(self, queued: int, scale: float) -> dict[str, FakePhone]:
        """Phones that said things while their server was restarted, and are back."""
        server = await self.serve()
        phones = server.phones(SCRIPTS, scale)
        for phone in phones.values():
            phone.say("# echo 0")
        await until(phones.values(), lambda phone: len(phone.replies) == 1)
        await server.stop()
        await until(phones.values(), lambda phone: not phone.online)
        for number in range(1, queued + 1):
            for phone in phones.values():
                phone.say(f"# echo {number}", *ROOMS[number % 2])
            await sleep(APART_SECONDS)
        await server.start()
        return phones

    async def test_five_queued(self) -> None:
        """After a restart each is back by itself, and what was queued is answered."""
        phones = await self.restart(5, 1.0)
        await until(phones.values(), lambda phone: len(phone.replies) == 6)
        await sleep(SETTLE_SECONDS)
        for script, phone in phones.items():
            self.assertEqual(phone.texts("테스트방"), ["0", "2", "4"], script)
            self.assertEqual(phone.texts("옆방 {1}"), ["1", "3", "5"], script)
            self.assertEqual(len(phone.record.connects), 2, script)

    async def test_fifteen_queued(self) -> None:
        """Of fifteen 3.3 gets all answered, on two connections; 3.2 the ten that it sends."""
        phones = await self.restart(15, 0.25)
        comes = {script: 10 if SCRIPTS[script].dialect is Dialect.V32 else 15 for script in SCRIPTS}
        await gatherResults(
            [phone.when_replies(1 + comes[script]) for script, phone in phones.items()]
        )
        await sleep(SETTLE_SECONDS)
        for script, phone in phones.items():
            said = [str(number) for number in range(1 + comes[script])]
            self.assertEqual(phone.texts("테스트방"), said[::2], script)
            self.assertEqual(phone.texts("옆방 {1}"), said[1::2], script)

    async def test_many_behind_one_address(self) -> None:
        """After a kill a hundred phones are back at their first try, and all is answered."""
        server = ServerProcess(self, "--set", f"server.max_connections={2 * MANY}")
        # At first the address may bring as many new devices as it likes.
        server.environment["DOMAEKA_LIMITS_ALLOW"] = '["127.0.0.0/8"]'
        await server.start()
        phones: list[FakePhone] = []
        for number in range(MANY):
            phone = server.phone(f"{number:016x}")
            phone.say("# echo 0", channel_id=str(number))
            await phone.when_replies(1)
            phones.append(phone)
        await sleep(2 * WRITE_SECONDS)
        server.signal("KILL")
        await server.ended()
        await until(phones, lambda phone: not phone.online)
        for phone in phones:
            phone.say("# echo 1", channel_id="1")
        del server.environment["DOMAEKA_LIMITS_ALLOW"]
        await server.start()
        await until(phones, lambda phone: len(phone.replies) == 2)
        for phone in phones:
            self.assertEqual((phone.texts(), len(phone.record.connects)), (["0", "1"], 2))
        _, metrics = await server.get("/metrics")
        self.assertIn(b'domaeka_refusals_total{reason="rate limited"} 0.0', metrics)
