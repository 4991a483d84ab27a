"""C{--reload}: the bots are imported anew when their files change, for developing."""

from collections.abc import Callable
from typing import Any, Final

from twisted.internet.task import LoopingCall
from twisted.logger import Logger

#: Interval of looks at the files, in seconds.
LOOK_SECONDS: Final = 1.0


class Watching:
    """Looks at files each second, and has the bots imported anew when they have changed."""

    log = Logger()

    def __init__(
        self, reactor: Any, noticed: Callable[[], bool], reload: Callable[[], object]
    ) -> None:
        """
        @param noticed: True if something has changed since it was last called.
        @param reload: logs its own errors.
        """
        self._noticed = noticed
        self._reload = reload
        self._looking = LoopingCall(self._look)
        self._looking.clock = reactor

    def start(self) -> None:
        """Look from now on."""
        self.log.warn("--reload is for developing: files are looked at each second")
        self._looking.start(LOOK_SECONDS).addErrback(
            lambda failure: self.log.failure("files are looked at no longer", failure)
        )

    def stop(self) -> None:
        """Look no longer."""
        if self._looking.running:
            self._looking.stop()

    def _look(self) -> None:
        try:
            if self._noticed():
                self.log.info("files of bots have changed")
                self._reload()
        except Exception:
            self.log.failure("the files of bots could not be looked at")
