"""A bot that takes its time, for the integration tests."""

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from domaeka import Bot, Context

bot = Bot("slow")
_held: list["Deferred[None]"] = []


@bot.command("# slow", reactor=True)
async def slow(ctx: Context) -> str:
    """C{# slow SECONDS TEXT}: the text, later."""
    from twisted.internet import reactor

    seconds, _, text = ctx.message.args.partition(" ")
    await deferLater(reactor, float(seconds))
    return text


@bot.command("# hold", reactor=True)
async def hold(ctx: Context) -> str:
    """C{# hold TEXT}: the text, once somebody says C{# release}."""
    released: Deferred[None] = Deferred()
    _held.append(released)
    await released
    return ctx.message.args


@bot.command("# release", reactor=True)
async def release(ctx: Context) -> None:
    """Answer what is held."""
    while _held:
        _held.pop().callback(None)
