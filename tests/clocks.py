"""A wall clock for tests: never the clock of what is scheduled, so that no mix-up goes unseen."""

from twisted.internet.task import Clock


class WallClock:
    """
    Goes as fast as a L{Clock}, from another beginning, and can be set.

    @ivar ahead: by how many seconds.
    """

    def __init__(self, clock: Clock, now: float) -> None:
        """@param now: what it shows now, in seconds since 1970."""
        self._clock = clock
        self.ahead = now - clock.seconds()

    def __call__(self) -> float:
        """In seconds since 1970."""
        return self._clock.seconds() + self.ahead

    def step(self, by: float) -> None:
        """Set it forward, or back, by so many seconds."""
        self.ahead += by
