"""
An example bot.

Start a server with it, from the directory that it is in::

    domaeka serve --bots example_bot:bot

then talk to it with C{domaeka phone}.  docs/bots.md is the guide for authors.
"""

import shutil
import struct
import zlib
from typing import Any
from urllib.request import urlopen

from twisted.internet.defer import inlineCallbacks
from twisted.internet.task import deferLater

from domaeka import Bot, Context, breaker

bot = Bot("example")


# A coroutine runs on the reactor: it must not block.  The text that it returns is the answer.
# The first line of the docstring is what "# help" shows.
@bot.command("# hello", aliases=("# 안녕",))
async def hello(ctx: Context) -> str:
    """인사합니다."""
    return f"{ctx.sender.name}님, 안녕하세요!"


# A function that returns a Deferred runs there, too.  Several answers may be sent, at any time.
@bot.command("# timer")
@inlineCallbacks
def timer(ctx: Context) -> Any:
    """몇 초 뒤에 알려 줍니다: # timer 3"""
    from twisted.internet import reactor

    text = ctx.message.args.strip()
    if not text.isascii() or not text.isdigit() or not 0 < int(text) <= 60:
        return "1에서 60까지의 수를 적어 주세요."
    ctx.reply(f"{text}초를 잽니다.")
    yield deferLater(reactor, int(text), lambda: None)
    return "시간이 되었습니다."


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
