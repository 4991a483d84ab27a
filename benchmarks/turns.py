"""
A bot that says how long the turns of its server's reactor are: for L{benchmarks.scrape}.

It times what the reactor does between two looks at its sockets, by the CPU time of its thread, so
that what else the machine does is left out.  The commands that do nothing are there to have series.
"""

import time
from typing import Any, Final, cast

from twisted.internet import reactor as _reactor

from benchmarks.scrape import COMMAND
from domaeka import Bot

#: How many commands there are that do nothing.
COMMANDS: Final = 20


class _Watch:
    """
    Stands in for the reactor's epoll.

    @ivar longest: the longest turn, in seconds.
    """

    def __init__(self, poller: Any) -> None:
        self.longest = 0.0
        self._poller = poller
        self._began = time.thread_time()

    def poll(self, *args: Any) -> Any:
        """A turn has ended; the next one begins when something has happened."""
        self.longest = max(self.longest, time.thread_time() - self._began)
        try:
            return self._poller.poll(*args)
        finally:
            self._began = time.thread_time()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._poller, name)


reactor = cast(Any, _reactor)
_watch = reactor._poller = _Watch(reactor._poller)

bot = Bot("turns")


@bot.command(COMMAND)
async def turns(ctx: object) -> str:
    """The longest turn since this was asked last, in seconds."""
    longest, _watch.longest = _watch.longest, 0.0
    return f"{longest:.6f}"


for _number in range(COMMANDS):
    bot.command(f"# nothing {_number}")(lambda ctx: None)
