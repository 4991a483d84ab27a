"""Circuit breakers for the outside services that bots use."""

import asyncio
import functools
import inspect
from collections.abc import Callable, Mapping
from threading import Lock
from typing import Any, Final, TypeVar, cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from domaeka.config import BreakerSettings
from domaeka.policies.retry import Breaker, BreakerState

_F = TypeVar("_F", bound=Callable[..., Any])

#: A call to an outside service that takes this long has failed, in seconds.  Source: docs/bots.md,
#: "Breakers".
SLOW_SERVICE_SECONDS: Final = 10.0

#: Errors that end a call from outside: they say nothing about the service.
_BROKEN_OFF: Final = (CancelledError, asyncio.CancelledError, GeneratorExit)


class Service:
    """
    An outside service, used from any thread.  Until a server has attached it, it lets every call
    through: bots can be tried without a server.
    """

    def __init__(self, name: str, slow: float) -> None:
        """@param slow: a call that takes this long has failed, in seconds."""
        self.name = name
        self.slow = slow
        self._lock = Lock()
        self._breaker: Breaker | None = None
        self._seconds: Callable[[], float] = lambda: 0.0

    @property
    def state(self) -> BreakerState:
        """The state of its breaker."""
        with self._lock:
            return BreakerState.CLOSED if self._breaker is None else self._breaker.state

    def attach(self, seconds: Callable[[], float], settings: BreakerSettings) -> None:
        """Begin to count.  @param seconds: the time now, in seconds."""
        with self._lock:
            self._seconds = seconds
            self._breaker = Breaker(
                self.name,
                seconds,
                settings.failure_threshold,
                settings.recovery_timeout,
                self.slow,
            )

    def begin(self) -> "_Call":
        """Count a call that is about to be made.  @raise BreakerOpen: it must not be made."""
        with self._lock:
            breaker = self._breaker
            return _Call(self, breaker, breaker.begin() if breaker is not None else 0)


class _Call:
    """A call to a service, and how it ended."""

    __slots__ = ("_began", "_breaker", "_permit", "_service")

    def __init__(self, service: Service, breaker: Breaker | None, permit: int) -> None:
        self._service = service
        self._breaker = breaker
        self._permit = permit
        self._began = service._seconds()

    def ended(self, error: BaseException | None = None) -> None:
        """Count it; C{error}: it failed."""
        if self._breaker is None:
            return
        took = max(0.0, self._service._seconds() - self._began)
        with self._service._lock:
            if error is None:
                self._breaker.succeeded(self._permit, took)
            # Broken off after a long wait: the service was slow.
            elif isinstance(error, _BROKEN_OFF) and took < self._service.slow:
                self._breaker.dropped(self._permit)
            else:
                self._breaker.failed(self._permit)


# The process has one set of services: the decorator runs before there is a server.
_services: Final[dict[str, Service]] = {}
_attached: list[tuple[Callable[[], float], BreakerSettings]] = []  # the last call's, if any


def services() -> Mapping[str, Service]:
    """Every outside service that a loaded bot has named, by its name."""
    return _services


def attach_services(seconds: Callable[[], float], settings: BreakerSettings) -> None:
    """Attach all services that are named, or will be, as L{Service.attach} does."""
    _attached[:] = [(seconds, settings)]
    for service in _services.values():
        service.attach(seconds, settings)


def breaker(name: str, *, slow: float = SLOW_SERVICE_SECONDS) -> Callable[[_F], _F]:
    """
    Guard the decorated function, which calls an outside service, with a circuit breaker.  It may be
    C{async def}, give a Deferred or be plain, and is called on the reactor or in a thread, as ever.

    After C{breaker.failure_threshold} failures it is not called for C{breaker.recovery_timeout}:
    it raises (or fails with) L{BreakerOpen<domaeka.policies.retry.BreakerOpen>} instead.  If a
    command lets that through, the server answers, once for each room.

    @param name: of the service.  Functions with the same name share a breaker, and the C{slow}
        of the first.
    @param slow: a call that takes this long has failed, in seconds.  It is not broken off.
    """
    service = _services.get(name)
    if service is None:
        service = _services[name] = Service(name, slow)
        for seconds, settings in _attached:
            service.attach(seconds, settings)

    def decorate(function: _F) -> _F:
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def guarded(*args: Any, **named: Any) -> Any:
                call = service.begin()
                try:
                    result = await function(*args, **named)
                except BaseException as error:
                    call.ended(error)
                    raise
                call.ended()
                return result

        else:

            @functools.wraps(function)
            def guarded(*args: Any, **named: Any) -> Any:
                call = service.begin()
                try:
                    result = function(*args, **named)
                except BaseException as error:
                    call.ended(error)
                    raise
                if isinstance(result, Deferred):
                    return result.addBoth(_deferred_ended, call)
                call.ended()
                return result

        return cast(_F, guarded)

    return decorate


def _deferred_ended(result: Any, call: _Call) -> Any:
    call.ended(result.value if isinstance(result, Failure) else None)
    return result
