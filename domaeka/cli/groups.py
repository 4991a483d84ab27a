"""Commands with names of two words, and where their options may stand."""

from difflib import get_close_matches
from typing import Any

import click

from domaeka.cli.output import one_line


class Suggesting(click.Group):
    """A group of commands that suggests similar names for an unknown one."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Find the command that C{args} begin with."""
        wanted = args[0]
        # click itself refuses unknown options.
        if not wanted.startswith("-") and not ctx.resilient_parsing:
            names = self.list_commands(ctx)
            if self.get_command(ctx, wanted) is None:
                close = get_close_matches(wanted, names)
                hint = f" Did you mean {' or '.join(close)}?" if close else ""
                ctx.fail(f"No such command {one_line(wanted)!r:.100}.{hint}")
        return super().resolve_command(ctx, args)


class Group(Suggesting):
    """
    A group of commands that has no options of its own.

    Options before the command's name are the command's.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the command in front."""
        if not args or args[0] not in ctx.help_option_names:
            index = self._command_index(args)
            if index is not None:
                args = [args[index], *args[:index], *args[index + 1 :]]
            elif not ctx.resilient_parsing:
                args = self.without_command(args)
        return super().parse_args(ctx, args)

    def without_command(self, args: list[str]) -> list[str]:
        """The arguments that are meant if no command is named."""
        return args

    def _command_index(self, args: list[str]) -> int | None:
        """The index of the first argument that is neither an option nor an option's value."""
        valued = {
            option
            for command in self.commands.values()
            for parameter in command.params
            if isinstance(parameter, click.Option) and not parameter.is_flag
            for option in parameter.opts
        }
        is_value = False
        for index, one in enumerate(args):
            if not is_value and not one.startswith("-"):
                return index
            is_value = not is_value and one in valued
        return None


class Listing(Group):
    """A group whose command is C{list} if none is named."""

    def without_command(self, args: list[str]) -> list[str]:
        """C{list}, with these options."""
        return ["list", *args]
