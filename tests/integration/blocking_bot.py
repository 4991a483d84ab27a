"""A bot that does what it must not: it blocks the bots' loop."""

import time

from domaeka import Bot, Context

bot = Bot("blocking")


@bot.command("# block")
async def block(ctx: Context, seconds: float) -> str:
    """Sleep without awaiting."""
    time.sleep(seconds)
    return "blocked"
