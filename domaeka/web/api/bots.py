"""
Bots: what they answer to, and what is left alone for a while.
"""

from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from domaeka.bots.dispatch import BotDispatcher
from domaeka.metrics import Metrics
from domaeka.policies.retry import BreakerState
from domaeka.web.api.endpoints import Ask, Endpoint

_State: TypeAlias = Annotated[
    Literal["closed", "half open", "open"],
    Meta(description="`open`: it is not called; `half open`: one call is let in, to see"),
]

_STATES: Final[dict[BreakerState, Literal["closed", "half open", "open"]]] = {
    BreakerState.CLOSED: "closed",
    BreakerState.HALF_OPEN: "half open",
    BreakerState.OPEN: "open",
}


class BotCommand(msgspec.Struct):
    """What a bot answers to; the counts are since the start."""

    name: str
    aliases: list[str]
    help: str
    operators_only: bool
    calls: int
    failures: Annotated[int, Meta(description="calls that failed or took too long")]
    breaker: _State


class LoadedBot(msgspec.Struct):
    """A bot that is loaded."""

    name: str
    commands: list[BotCommand]


class ServiceState(msgspec.Struct):
    """An outside service that a bot uses."""

    name: str
    breaker: _State


class Bots(msgspec.Struct):
    """All bots, and the outside services that they use."""

    bots: list[LoadedBot]
    services: list[ServiceState]


class BotPages:
    """What is asked of bots."""

    def __init__(self, dispatcher: BotDispatcher, metrics: Metrics) -> None:
        self._dispatcher = dispatcher
        self._metrics = metrics

    def endpoints(self) -> tuple[Endpoint, ...]:
        """What is to be served."""
        return (
            Endpoint(
                method="GET",
                path="/bots",
                serve=self.list,
                subject="bots",
                summary="Bots with their commands and breakers",
                answer=Bots,
            ),
        )

    def list(self, ask: Ask[Any, None]) -> Bots:
        """All bots."""
        breakers = dict(self._dispatcher.breakers())
        metrics = self._metrics
        bots: dict[str, LoadedBot] = {}
        for command in self._dispatcher.commands():
            bot = bots.setdefault(command.bot_name, LoadedBot(command.bot_name, []))
            bot.commands.append(
                BotCommand(
                    command.name,
                    list(command.aliases),
                    command.help,
                    command.operators_only,
                    metrics.handler.labels(command.name).count,
                    int(metrics.handler_failures.labels(command.name).value),
                    _STATES[breakers.pop(command.name).state],
                )
            )
        return Bots(
            list(bots.values()),
            [ServiceState(name, _STATES[breaker.state]) for name, breaker in breakers.items()],
        )
