"""The commands that every server has."""

from collections.abc import Sequence

from domaeka import texts_ko
from domaeka.bots.api import Bot, Context


def builtin_bot(others: Sequence[Bot]) -> Bot:
    """Make the bot of these commands.  @param others: the bots beside it, for C{# help}."""
    bot = Bot("domaeka")

    @bot.command("# echo", help=texts_ko.ECHO_HELP, reactor=True)
    async def echo(ctx: Context) -> str:
        return ctx.message.args or texts_ko.ECHO_USAGE

    @bot.command("# help", help=texts_ko.HELP_HELP, reactor=True)
    async def show_help(ctx: Context) -> str:
        shown = [
            f"{command.usage} - {command.help}" if command.help else command.usage
            for one in (bot, *others)
            for command in one.commands
            if not command.operators_only or ctx.is_operator
        ]
        return "\n".join((texts_ko.HELP_TITLE, *shown))

    @bot.command("# client_info", help=texts_ko.CLIENT_INFO_HELP, operators_only=True, reactor=True)
    async def client_info(ctx: Context) -> str:
        facts = (f"{name}: {value}" for name, value in ctx.describe_device().items())
        return "\n".join((texts_ko.CLIENT_INFO_TITLE, *facts))

    return bot
