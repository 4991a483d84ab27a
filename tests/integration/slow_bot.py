"""A bot that takes its time, for the integration tests."""

from twisted.internet.task import deferLater

from domaeka import Bot, Context

bot = Bot("slow")


@bot.command("# slow")
async def slow(ctx: Context) -> str:
    """C{# slow SECONDS TEXT}: the text, later."""
    from twisted.internet import reactor

    seconds, _, text = ctx.message.args.partition(" ")
    await deferLater(reactor, float(seconds))
    return text
