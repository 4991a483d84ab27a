"""A bot that echoes on the bots' loop, in the place of the built-in command."""

from domaeka import Bot, Context

bot = Bot("loop")


@bot.command("# echo")
async def echo(ctx: Context) -> str:
    """The text, as the built-in command gives it."""
    return ctx.message.args
