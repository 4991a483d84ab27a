"""
An example bot.

Start a server with it, from the directory that it is in::

    domaeka serve --bots example_bot:bot

then talk to it with C{domaeka phone}.  docs/bots.md is the guide for authors.
"""

import asyncio
import shutil
import struct
import zlib
from typing import Any, Literal
from urllib.request import urlopen

from twisted.internet.defer import inlineCallbacks
from twisted.internet.task import deferLater

from domaeka import (
    AskTimeout,
    BadArguments,
    Bot,
    Context,
    ScheduleContext,
    breaker,
    cooldown,
    operators,
    role,
)

bot = Bot("example")


# A coroutine runs on the bots' asyncio loop, beside the gateway.  The text that it returns is the
# answer.  The first line of the docstring is what "# help" shows.
@bot.command("# hello", aliases=("# 안녕",))
async def hello(ctx: Context) -> str:
    """인사합니다."""
    return f"{ctx.sender.name}님, 안녕하세요!"


# Arguments are read as the signature says; what does not fit is answered with the usage.  Several
# answers may be sent, at any time.  Nobody may start more than three of these in a minute.
@bot.command("# timer", cooldown=cooldown(3, 60))
async def timer(ctx: Context, seconds: int, *, text: str = "시간이 되었습니다.") -> str:
    """몇 초 뒤에 알려 줍니다."""
    if not 0 < seconds <= 60:
        raise BadArguments("1에서 60까지의 수를 적어 주세요.")
    ctx.reply(f"{seconds}초를 잽니다.")
    await asyncio.sleep(seconds)
    return text


# A question waits for the person who was asked, while others go on talking.
@bot.command("# tea")
async def tea(ctx: Context, kind: Literal["녹차", "홍차"] = "녹차") -> str:
    """차를 주문합니다."""
    try:
        answer = await ctx.ask("몇 잔 드릴까요?", check=lambda message: message.text.isdigit())
    except AskTimeout:
        return "주문을 받지 못했어요."
    cups = await ctx.sender.store.incr("cups", min(int(answer.text[:3]), 100))
    return f"{kind} {answer.text}잔, 모두 {cups}잔째예요."


# Values stay over restarts: ctx.room.store of a room, ctx.sender.store of a person, bot.store.
@bot.command("# memo")
async def memo(ctx: Context, *, text: str = "") -> str:
    """메모를 적거나 봅니다."""
    if text:
        await ctx.room.store.set("memo", text)
        return "적어 두었어요."
    return str(await ctx.room.store.get("memo", "메모가 없어요."))


# Who may: never by a name.  Roles are given by: domaeka roles add staff CHANNEL/HASH
@bot.command("# notice", allow=operators | role("staff"))
async def notice(ctx: Context, room: str, *, text: str) -> str:
    """다른 방에 알립니다."""
    await bot.send(room, text)
    return "보냈어요."


# Chat that is no command goes to the first of these that takes it.
@bot.on_message(contains=("고마워", "감사"), mention=True)
async def thanks(ctx: Context) -> str:
    return "천만에요!"


# Each morning, in the rooms with these channel ids.
@bot.schedule("0 8 * * *", timezone="Asia/Seoul", rooms=["18338494926958305"])
async def morning(ctx: ScheduleContext) -> str:
    return f"좋은 아침이에요! {ctx.scheduled:%m월 %d일}입니다."


# What Twisted offers works on the reactor: functions that return a Deferred run there, and those
# with reactor=True.  They must not block.
@bot.command("# tick")
@inlineCallbacks
def tick(ctx: Context) -> Any:
    """1초 뒤에 대답합니다."""
    from twisted.internet import reactor

    yield deferLater(reactor, 1, lambda: None)
    return "째깍"


# A plain function runs in a thread: it may block, for as long as bots.timeout allows.
@bot.command("# disk", operators_only=True)
def disk(ctx: Context) -> str:
    """서버의 디스크를 봅니다."""
    usage = shutil.disk_usage("/")
    return f"{usage.total // 2**30} GiB 가운데 {usage.free // 2**30} GiB가 남았습니다."


# Pictures, and other files: their bytes, their paths (of files on the server) or their addresses.
# Reading files takes time: await it.
@bot.command("# picture")
async def picture(ctx: Context) -> None:
    """그림을 보냅니다."""
    colours = ((220, 60, 60), (60, 160, 80), (60, 90, 200))
    await ctx.reply_media([square(*colour) for colour in colours], wait_ms=5000)


# A request to another server should have a circuit breaker: once that server has failed too often,
# it is left alone for a while, and rooms are told so once.
@breaker("example.org")
def ask_site() -> int:
    with urlopen("https://example.org/", timeout=5) as answer:
        status: int = answer.status
        return status


@bot.command("# site")
def site(ctx: Context) -> str:
    """사이트가 열려 있는지 봅니다."""
    return f"사이트의 대답: {ask_site()}"


def square(red: int, green: int, blue: int, side: int = 64) -> bytes:
    """A PNG file of one colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = (b"\0" + bytes((red, green, blue)) * side) * side
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
