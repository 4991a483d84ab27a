"""Six tasks of a bot: dice, the weather, a memo, a picture, a greeting, a conversation."""

import os
import random
from typing import Literal

import httpx
from PIL import Image

from domaeka import Bot, Context, ScheduleContext

WEATHER_URL = os.environ.get("WEATHER_URL", "http://127.0.0.1:8088/")
GREETED = "18338494926958305"
COLOURS = {"빨강": (220, 60, 60), "파랑": (60, 90, 200)}

bot = Bot("six", prefix="!")


@bot.command("주사위")
async def roll(ctx: Context, sides: int = 6, times: int = 1) -> str:
    return " ".join(str(random.randint(1, sides)) for _ in range(times))


@bot.command("날씨")
async def weather(ctx: Context, *, city: str = "서울") -> str:
    async with httpx.AsyncClient(timeout=5) as client:
        answer = await client.get(WEATHER_URL, params={"city": city})
    return f"{city}: {answer.text}"


@bot.command("메모")
async def memo(ctx: Context, *, text: str = "") -> str:
    if text:
        await ctx.room.store.set("memo", text)
        return "적어 두었어요."
    return str(await ctx.room.store.get("memo", "메모가 없어요."))


@bot.command("그림")
async def picture(ctx: Context, colour: Literal["빨강", "파랑"] = "빨강") -> None:
    await ctx.reply_media(Image.new("RGB", (320, 200), COLOURS[colour]))


@bot.command("소개")
async def introduce(ctx: Context) -> str:
    answer = await ctx.ask("이름이 뭐예요?")
    return f"{answer.text}님, 반가워요!"


@bot.schedule("0 8 * * *", timezone="Asia/Seoul", rooms=[GREETED])
async def greet(ctx: ScheduleContext) -> str:
    return "좋은 아침이에요!"
