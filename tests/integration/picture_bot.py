"""A bot that sends pictures, for the integration tests."""

import gc

from domaeka import Bot, Context

#: What begins a PNG file.  Source: RFC 2083, 3.1.
_PNG = b"\x89PNG\r\n\x1a\n"

bot = Bot("pictures")


def picture(number: int) -> bytes:
    """The picture of that number: each has every byte in it, and a length of its own."""
    return _PNG + bytes(range(256)) * (1 + 300 * number) + bytes(number)


@bot.command("# pictures")
async def pictures(ctx: Context) -> None:
    """C{# pictures COUNT WAIT_MS}: as many pictures in one frame."""
    count, wait_ms = ctx.message.args.split()
    await ctx.reply_media([picture(number) for number in range(int(count))], int(wait_ms))


@bot.command("# collect")
async def collect(ctx: Context) -> str:
    """Have Python look for garbage now, which it does when it likes."""
    gc.collect()
    return "collected"
