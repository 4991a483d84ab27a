"""Commands of which the names are two words, and where their options may stand."""

import click


class Group(click.Group):
    """
    A group of commands that has no options of its own.

    Those ahead of the command's name are the command's.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the command in front."""
        if not args or args[0] not in ctx.help_option_names:
            place = self._command_place(args)
            if place is not None:
                args = [args[place], *args[:place], *args[place + 1 :]]
            elif not ctx.resilient_parsing:
                args = self.without_command(args)
        return super().parse_args(ctx, args)

    def without_command(self, args: list[str]) -> list[str]:
        """What is meant where no command is named."""
        return args

    def _command_place(self, args: list[str]) -> int | None:
        """Where the first one is that is neither an option nor an option's value."""
        valued = {
            option
            for command in self.commands.values()
            for parameter in command.params
            if isinstance(parameter, click.Option) and not parameter.is_flag
            for option in parameter.opts
        }
        is_value = False
        for place, one in enumerate(args):
            if not is_value and not one.startswith("-"):
                return place
            is_value = not is_value and one in valued
        return None


class Listing(Group):
    """A group of which C{list} is meant where no command is named."""

    def without_command(self, args: list[str]) -> list[str]:
        """C{list}, with these options."""
        return ["list", *args]
