"""
Domaeka, a gateway for chat-bot phones.

Bot authors import from here all that they need.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from domaeka.bots.access import cooldown, operators, people, role, room
    from domaeka.bots.api import Bot, Context
    from domaeka.bots.arguments import BadArguments
    from domaeka.bots.schedules import ScheduleContext
    from domaeka.bots.sending import Receipt
    from domaeka.bots.services import breaker
    from domaeka.errors import (
        AmbiguousRoom,
        AskTimeout,
        NoRoom,
        NoServer,
        SendRefused,
        StorageFull,
        StoreError,
    )
    from domaeka.policies.retry import BreakerOpen

__all__ = [
    "AmbiguousRoom",
    "AskTimeout",
    "BadArguments",
    "Bot",
    "BreakerOpen",
    "Context",
    "NoRoom",
    "NoServer",
    "Receipt",
    "ScheduleContext",
    "SendRefused",
    "StorageFull",
    "StoreError",
    "__version__",
    "breaker",
    "cooldown",
    "operators",
    "people",
    "role",
    "room",
]

__version__ = "0.1.0"

#: Where the public names are made.  They are imported when first asked for: the floors below the
#: bots import this package too.
_HOMES = {
    "AmbiguousRoom": "domaeka.errors",
    "AskTimeout": "domaeka.errors",
    "BadArguments": "domaeka.bots.arguments",
    "Bot": "domaeka.bots.api",
    "BreakerOpen": "domaeka.policies.retry",
    "Context": "domaeka.bots.api",
    "NoRoom": "domaeka.errors",
    "NoServer": "domaeka.errors",
    "Receipt": "domaeka.bots.sending",
    "ScheduleContext": "domaeka.bots.schedules",
    "SendRefused": "domaeka.errors",
    "StorageFull": "domaeka.errors",
    "StoreError": "domaeka.errors",
    "breaker": "domaeka.bots.services",
    "cooldown": "domaeka.bots.access",
    "operators": "domaeka.bots.access",
    "people": "domaeka.bots.access",
    "role": "domaeka.bots.access",
    "room": "domaeka.bots.access",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value
