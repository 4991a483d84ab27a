"""Tests of what bots send, store and schedule, with a whole server behind them."""

from domaeka import Bot, ScheduleContext
from domaeka.bots.api import Context
from tests.server_case import ServerCase

NEWS = Bot("news")
ROOM = "1001"


@NEWS.on_start
async def started() -> None:
    """The store is not open yet."""
    await NEWS.store.incr("starts")


@NEWS.command("# tell")
async def tell(ctx: Context, room: str, text: str) -> str:
    """Send something to a room."""
    receipt = await NEWS.send(room, text)
    return f"{receipt.id} {await receipt.status()} {await NEWS.store.get('starts')}"


@NEWS.schedule("* * * * *", timezone="Asia/Seoul", rooms=[ROOM])
async def each_minute(ctx: ScheduleContext) -> str:
    """Count the minutes."""
    return f"minute {await NEWS.store.incr('minutes')}"


class BotsServerTests(ServerCase):
    """A bot, a server and a phone."""

    def test_all_of_it(self) -> None:
        """A bot sends by id and by title, counts over a restart, and the API knows its messages."""
        self.server.settings.append(("bots.load", f'["{__name__}:NEWS"]'))
        self.server.start()
        phone = self.server.phone()
        phone.say("안녕", room="방", channel_id=ROOM)
        phone.say("안녕", room="다른 방", channel_id="1002")
        self.run_for(0.1)
        phone.say(f"# tell {ROOM} 하나", room="다른 방", channel_id="1002")
        phone.say("# tell '다른 방' 둘", room="방", channel_id=ROOM)
        self.run_for(0.1)
        self.assertTrue({"하나", "둘"} <= set(phone.texts()))
        (first,) = (text for text in phone.texts() if text.endswith("-1 queued 1"))
        answer = self.server.ask("GET", f"/api/v1/messages/{first.split()[0]}").body
        found = answer["channel_id"], answer["room"], answer["state"]
        self.assertEqual(found, (ROOM, "방", "sent"))
        self.run_for(61.0)
        self.assertIn("minute 1", phone.texts())
        self.server.stop()
        self.run_for(20.0)
        self.server.start()
        self.run_for(120.0)
        self.assertIn("minute 3", phone.texts())
        phone.say(f"# tell {ROOM} 셋", room="방", channel_id=ROOM)
        self.run_for(0.1)
        self.assertRegex(phone.texts()[-1], "-[0-9]+ queued 2$")
        phone.stop()
