"""The commands that every server has."""

from collections.abc import Sequence

from domaeka.bots.api import Bot, Context

ECHO_USAGE = "사용법: # echo <보낼 말>"
HELP_TITLE = "쓸 수 있는 명령"
CLIENT_INFO_TITLE = "클라이언트 정보"


def builtin_bot(others: Sequence[Bot]) -> Bot:
    """@param others: the bots beside it, for C{# help}."""
    bot = Bot("domaeka")

    @bot.command("# echo", help="보낸 말을 그대로 돌려줍니다.")
    async def echo(ctx: Context) -> str:
        return ctx.message.args or ECHO_USAGE

    @bot.command("# help", help="쓸 수 있는 명령을 보여 줍니다.")
    async def show_help(ctx: Context) -> str:
        shown = [
            f"{command.name} - {command.help}" if command.help else command.name
            for one in (bot, *others)
            for command in one.commands
            if not command.operators_only or ctx.is_operator
        ]
        return "\n".join((HELP_TITLE, *shown))

    @bot.command("# client_info", help="이 방의 봇이 도는 기기를 보여 줍니다.", operators_only=True)
    async def client_info(ctx: Context) -> str:
        facts = ctx.describe_device().items()
        return "\n".join((CLIENT_INFO_TITLE, *(f"{name}: {value}" for name, value in facts)))

    return bot
