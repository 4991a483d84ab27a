"""Events: notify every watcher of what happens in the gateway."""

from domaeka.gateway.views import ClosedConnection, ConnectionName, Watcher
from domaeka.interfaces import Ban
from domaeka.schema import LineQuality


class Events:
    """A L{Watcher} that notifies all C{watchers}, which may be changed at any time."""

    def __init__(self) -> None:
        self.watchers: list[Watcher] = []

    def connected(self, name: ConnectionName) -> None:
        for watcher in tuple(self.watchers):
            watcher.connected(name)

    def graded(self, name: ConnectionName, quality: LineQuality) -> None:
        for watcher in tuple(self.watchers):
            watcher.graded(name, quality)

    def closed(self, closed: ClosedConnection) -> None:
        for watcher in tuple(self.watchers):
            watcher.closed(closed)

    def banned(self, ban: Ban) -> None:
        for watcher in tuple(self.watchers):
            watcher.banned(ban)

    def changed(self, what: str, state: str) -> None:
        for watcher in tuple(self.watchers):
            watcher.changed(what, state)
