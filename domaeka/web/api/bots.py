"""Endpoint of bots: their commands and circuit breakers."""

from typing import Any, Final, Literal

from domaeka.bots.access import operators
from domaeka.bots.commands import Command
from domaeka.bots.dispatch import BotDispatcher
from domaeka.metrics import Metrics
from domaeka.policies.retry import BreakerState
from domaeka.schema import BotCommand, Bots, LoadedBot, ServiceState
from domaeka.web.api.endpoints import EndpointGroup, Request, endpoint

#: Most rooms and people that are listed for a command.
MAX_OPEN_FOR: Final = 20
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
        bots = [
            LoadedBot(bot.name, [self._command(command) for command in bot.commands])
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

    def _command(self, command: Command) -> BotCommand:
        breaker = self._dispatcher.breaker(command)
        open_for = breaker.open_for()
        metrics = self._metrics
        return BotCommand(
            command.name,
            list(command.aliases),
            command.help,
            command.allow == operators,
            metrics.handler.labels(command.name).count,
            int(metrics.handler_failures.labels(command.name).value),
            _STATES[breaker.state],
            str(command.allow or ""),
            open_for[:MAX_OPEN_FOR],
            len(open_for),
        )
