"""The commands that every server has, under the names that C{bots.builtin} gives them."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from domaeka import texts_ko
from domaeka.bots.access import operators
from domaeka.bots.api import Bot, Context
from domaeka.bots.commands import check_name, normal
from domaeka.bots.routing import serves
from domaeka.config import BuiltinSettings
from domaeka.errors import ConfigError


def builtin_bot(others: Sequence[Bot], names: BuiltinSettings) -> Bot:
    """
    Make the bot of these commands.

    @param others: the bots beside it, for C{# help}.
    @param names: the name of each command; empty: there is none.
    @raise ConfigError: a name is not usable, or another command has it.
    """
    bot = Bot("domaeka")
    _check(names, others)

    def command(name: str, **more: Any) -> Callable[[Any], Any]:
        return bot.command(name, reactor=True, **more) if name else lambda function: function

    @command(names.echo, help=texts_ko.ECHO_HELP)
    async def echo(ctx: Context) -> str:
        return ctx.message.args or texts_ko.ECHO_USAGE.format(name=names.echo)

    @command(names.help, help=texts_ko.HELP_HELP)
    async def show_help(ctx: Context) -> str:
        shown = [
            f"{command.usage} - {command.help}" if command.help else command.usage
            for one in (bot, *others)
            if serves(one, ctx.device.bot_name, ctx._chat.channel_id)
            for command in one.commands
            if ctx._runtime.allows(command.allow, ctx._chat)
        ]
        return "\n".join((texts_ko.HELP_TITLE, *shown))

    @command(names.client_info, help=texts_ko.CLIENT_INFO_HELP, allow=operators)
    async def client_info(ctx: Context) -> str:
        facts = (f"{name}: {value}" for name, value in ctx.describe_device().items())
        return "\n".join((texts_ko.CLIENT_INFO_TITLE, *facts))

    return bot


def _check(names: BuiltinSettings, others: Sequence[Bot]) -> None:
    """Check that the names can be those of commands, and that no other command has one."""
    taken = {
        normal(name): f"that of the bot {command.bot_name!r} ({command.place})"
        for one in others
        for command in one.commands
        for name in (command.name, *command.aliases)
    }
    usual = msgspec.structs.asdict(BuiltinSettings())
    given = msgspec.structs.asdict(names)
    # Of two with the same name, the one that was given it is wrong.
    for key in sorted(given, key=lambda key: bool(given[key] != usual[key])):
        name = given[key]
        if not name:
            continue
        try:
            check_name(name)
        except ValueError as error:
            raise ConfigError(f"bots.builtin.{key}: {error}") from None
        if owner := taken.get(normal(name)):
            raise ConfigError(
                f"bots.builtin.{key}: the command {name!r} is {owner}, too: give the built-in one "
                'another name here, or "" to switch it off'
            )
        taken[normal(name)] = f"bots.builtin.{key}"
