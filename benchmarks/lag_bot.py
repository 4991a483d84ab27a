"""
A bot that measures the longest turn of its server's reactor: for L{benchmarks.scrape}.

It measures the CPU time of the reactor's thread between two polls of its sockets, so that the rest
of the machine does not count.  The commands that do nothing exist for their metric series.
"""

import time
from typing import Any, Final, cast

from twisted.internet import reactor as _reactor

from benchmarks.scrape import COMMAND
from domaeka import Bot

#: Number of commands that do nothing.
COMMANDS: Final = 20


class _Watch:
    """
    Wrapper of the reactor's epoll.

    @ivar longest: the longest turn, in seconds.
    """

    def __init__(self, poller: Any) -> None:
        self.longest = 0.0
        self._poller = poller
        self._began = time.thread_time()

    def poll(self, *args: Any) -> Any:
        """End a turn, and begin the next one once something has happened."""
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


@bot.command(COMMAND, reactor=True)
async def turns(ctx: object) -> str:
    """The longest turn since the last call, in seconds."""
    longest, _watch.longest = _watch.longest, 0.0
    return f"{longest:.6f}"


for _number in range(COMMANDS):
    bot.command(f"# nothing {_number}")(lambda ctx: None)
