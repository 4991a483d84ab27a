"""Endpoint of bots: their commands and circuit breakers."""

from typing import Any, Final, Literal

from domaeka.bots.access import operators
from domaeka.bots.dispatch import BotDispatcher
from domaeka.metrics import Metrics
from domaeka.policies.retry import BreakerState
from domaeka.schema import BotCommand, Bots, LoadedBot, ServiceState
from domaeka.web.api.endpoints import EndpointGroup, Request, endpoint

_STATES: Final[dict[BreakerState, Literal["closed", "half open", "open"]]] = {
    BreakerState.CLOSED: "closed",
    BreakerState.HALF_OPEN: "half open",
    BreakerState.OPEN: "open",
}


class BotPages(EndpointGroup):
    """The endpoint of bots."""

    def __init__(self, dispatcher: BotDispatcher, metrics: Metrics) -> None:
        self._dispatcher = dispatcher
        self._metrics = metrics

    @endpoint("GET", "/bots", "Bots with their commands and breakers")
    def list(self, request: Request[Any, None]) -> Bots:
        """All bots."""
        breakers = self._dispatcher.breakers()
        handlers = {command.name for command in self._dispatcher.handlers()}
        metrics = self._metrics
        bots = [
            LoadedBot(
                bot.name,
                [
                    BotCommand(
                        command.name,
                        list(command.aliases),
                        command.help,
                        command.allow == operators,
                        metrics.handler.labels(command.name).count,
                        int(metrics.handler_failures.labels(command.name).value),
                        _STATES[breakers[command.name].state],
                        str(command.allow or ""),
                    )
                    for command in bot.commands
                ],
            )
            for bot in self._dispatcher.bots()
        ]
        return Bots(
            bots,
            [
                ServiceState(name, _STATES[breaker.state])
                for name, breaker in breakers.items()
                if name not in handlers
            ],
        )
