"""
Cost of the store: the chat log's size at the start, reading, removal, writing, and the import.

Usage: C{python -m benchmarks.store [--quick]}.  All is in a temporary directory, and removed.
PostgreSQL and MariaDB take part where Debian's packages are installed.
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timezone
from itertools import count
from pathlib import Path
from typing import Any, Final, NamedTuple

from sqlalchemy import URL, create_engine, func, select
from twisted.internet import task
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.trial.unittest import SkipTest

from benchmarks import machine
from benchmarks.servers import BenchmarkError, gateway
from domaeka.interfaces import ChatLine
from domaeka.store import chatlog
from domaeka.store.chat_search import ChatFilter, ChatSearch
from domaeka.store.chatlog import CHAT_LINES, StoredChatLog, insert_lines
from domaeka.store.database import Database
from domaeka.store.drivers import make_engine, sqlite_address
from domaeka.store.imports.importer import Importer
from domaeka.store.imports.source import Source
from domaeka.store.revisions import migrate
from tests.previous_system import SEOUL, PreviousSystem
from tests.proofs.store_servers import mariadb, postgresql

DAY: Final = 86_400.0
#: Days that lines are kept; those of before are removed.
DAYS: Final = 30.0
ROOMS: Final = 1000
#: Lines in one transaction of the filling.
BATCH: Final = 5000
#: Lines that wait together to be written.
WAITING: Final = 20_000
#: Tries of a search.
SEARCHES: Final = 200
#: Interval of the ticks that measure turns of the reactor, in seconds.
TICK: Final = 0.005
RARE: Final = "바늘"


class Scale(NamedTuple):
    """
    Size of the measurement.

    @ivar lines: of the chat log; C{old} of them are to be removed.
    @ivar written: lines whose writing is measured.
    @ivar imported: lines of the previous system.
    @ivar starts: tries of a start.
    """

    lines: int
    old: int
    written: int
    imported: int
    starts: int


FULL: Final = Scale(5_000_000, 200_000, 200_000, 1_000_000, 5)
QUICK: Final = Scale(20_000, 3_000, 2_000, 2_000, 1)


def lines(number: int, rooms: int, until: float, seconds: float) -> Iterator[ChatLine]:
    """
    Chat as groups have it, each line in a room by chance.

    @param until: time of the last one.
    @param seconds: time between two.
    """
    chance = random.Random(7)
    names = [(str(chance.randrange(10**16, 10**17)), f"손님 {n} 방") for n in range(rooms)]
    first = until - number * seconds
    for n in range(number):
        room = chance.choice(names)
        text = f"안녕하세요, 오늘 딸기 두 박스 주문할게요. {n}번째" + "\n감사합니다" * (n % 10 == 0)
        place = "in", "가게봇", "a1b2c3d4e5f60718", *room
        who = f"사람 {n % 3000}", f"{n % 3000:064x}", str(3_400_000_000_000_000_000 + n)
        yield ChatLine(first + n * seconds, *place, *who, text)


def fill(path: Path, scale: Scale, now: float) -> None:
    """Make a chat log; the first line alone has L{RARE}."""
    engine = make_engine(sqlite_address(path), writes=True)
    with engine.begin() as connection:
        migrate(connection)
    old = scale.old
    parts = (
        lines(old, ROOMS, now - (DAYS + 1) * DAY, 0.5),
        lines(scale.lines - old, ROOMS, now, (DAYS - 1) * DAY / scale.lines),
    )
    first = True
    for part in parts:
        batch: list[ChatLine] = []
        for line in part:
            batch.append(line._replace(text=RARE) if first and part is parts[1] else line)
            first = first and part is parts[0]
            if len(batch) == BATCH:
                with engine.begin() as connection:
                    insert_lines(connection, batch)
                batch = []
        with engine.begin() as connection:
            insert_lines(connection, batch)
    engine.dispose()


def start_seconds(tries: int, *settings: str) -> float:
    """Median of the time until a server listens, in seconds."""
    took = []
    for _ in range(tries):
        began = time.monotonic()
        with gateway(*settings):
            took.append(time.monotonic() - began)
    return statistics.median(took)


def waited() -> float:
    """How long threads of this process have waited for a core so far, in seconds."""
    files = Path("/proc/self/task").glob("*/schedstat")
    return sum(int(file.read_text().split()[1]) for file in files) / 1e9


class Turns:
    """The longest turn of the reactor, as ticks see it, but for waiting for a core."""

    def __init__(self, reactor: Any) -> None:
        self.longest = 0.0
        self._last, self._waited = time.monotonic(), waited()
        self._loop = task.LoopingCall(self._tick)
        self._loop.clock = reactor
        self._loop.start(TICK)

    def _tick(self) -> None:
        now, so_far = time.monotonic(), waited()
        self.longest = max(self.longest, now - self._last - TICK - (so_far - self._waited))
        self._last, self._waited = time.monotonic(), so_far

    def stop(self) -> float:
        """The longest, in seconds."""
        self._loop.stop()
        return self.longest


def row(what: str, figure: str, wanted: str = "") -> None:
    """Print a row of the table."""
    print(f"| {what} | {figure} | {wanted} |", flush=True)


@inlineCallbacks
def read_and_remove(reactor: Any, path: Path, scale: Scale, now: float) -> Any:
    """Searches, then the removal of old lines."""
    database = Database(sqlite_address(path), reactor)
    yield database.start()
    search = ChatSearch(database, reactor)
    rooms = [line.room_id for line in lines(SEARCHES, ROOMS, now, 1.0)]
    took = []
    for room in rooms:
        began = time.monotonic()
        page = yield search.find(ChatFilter(room_id=room), 50)
        took.append(time.monotonic() - began)
        if not page.lines:
            raise BenchmarkError(f"no line of the room {room}")
    took.sort()
    row(
        "a room's last 50 lines: median, 99 %",
        f"{took[len(took) // 2] * 1000:.1f} ms, {took[len(took) * 99 // 100] * 1000:.1f} ms",
        "50 ms",
    )
    turns = Turns(reactor)
    began = time.monotonic()
    pages, found, after, longest = 0, 0, None, 0.0
    while True:
        asked = time.monotonic()
        page = yield search.find(ChatFilter(text=RARE), 50, after)
        longest = max(longest, time.monotonic() - asked)
        pages, found, after = pages + 1, found + len(page.lines), page.next
        if after is None:
            break
    if found != 1:
        raise BenchmarkError(f"{found} lines found of 1")
    row(
        "search of all for a text that one line has",
        f"{time.monotonic() - began:.1f} s, {pages} requests of {longest:.2f} s at most; "
        f"longest turn {turns.stop() * 1000:.0f} ms",
        "50 ms",
    )
    turns = Turns(reactor)
    yield task.deferLater(reactor, 3.0)
    idle = turns.stop()
    log = StoredChatLog(database, reactor, DAYS, wall=time.time)
    chatlog._FIRST_FORGET_SECONDS = 0.0  # type: ignore[misc]
    writes: list[float] = []
    database._observe_write = writes.append
    turns = Turns(reactor)
    began = time.monotonic()
    log.start()
    old = select(func.count()).where(CHAT_LINES.c.time < (now - DAYS * DAY) * 1000)
    while (yield database.run_read(lambda connection: connection.scalar(old))):
        yield task.deferLater(reactor, 0.2)
    row(
        f"removal of {scale.old:,} old lines",
        f"{time.monotonic() - began:.0f} s, transactions of {max(writes) * 1000:.0f} ms at most; "
        f"longest turn {turns.stop() * 1000:.0f} ms (idle: {idle * 1000:.0f} ms)",
        "50 ms",
    )
    yield log.stop()
    yield database.stop()


@inlineCallbacks
def write(reactor: Any, name: str, url: URL, scale: Scale) -> Any:
    """Processor time of a line that is written."""
    for rooms in (50, ROOMS):
        database = Database(url, reactor)
        log = StoredChatLog(database, reactor, wall=time.time)
        yield database.start()
        said = list(lines(scale.written, rooms, time.time(), 0.005))
        spent = 0.0
        for start in range(0, len(said), WAITING):
            began = time.process_time()
            for line in said[start : start + WAITING]:
                log.append(line)
            while log.waiting:
                yield task.deferLater(reactor, 0.01)
            spent += time.process_time() - began
        if log.dropped:
            raise BenchmarkError(f"{log.dropped} lines were dropped")
        yield log.stop()
        yield database.stop()
        row(
            f"{name}: our processor time for a line, {rooms} rooms",
            f"{spent / len(said) * 1e6:.1f} µs",
        )


def import_all(source: URL, target: Path, scale: Scale) -> None:
    """The import, and its counts."""
    old = PreviousSystem(scale.imported)
    engine = create_engine(source)
    old.fill(engine)
    engine.dispose()
    numbers = count()
    wanted = len(
        {
            (one["bot_name"], one["channel_id"] or one["room_name"], one["log_id"] or next(numbers))
            for one in old.lines
            if one["message"] is not None
            and any(one[at] for at in ("server_timestamp", "client_timestamp", "created_at"))
        }
    )
    store = make_engine(sqlite_address(target), writes=True)
    began = time.monotonic()
    address = source.render_as_string(hide_password=False)
    with closing(Source(address, timezone(SEOUL))) as reader:
        report = Importer(reader, store, days=100_000, now=time.time()).run()
    took = time.monotonic() - began
    with store.connect() as connection:
        stored = connection.scalar(select(func.count()).select_from(CHAT_LINES))
    store.dispose()
    if not (report.lines.taken == stored == wanted and report.lines.read == scale.imported):
        raise BenchmarkError(f"{wanted} lines wanted, {report.lines.taken} taken, {stored} stored")
    row(
        f"import of {scale.imported:,} lines from {source.get_backend_name()}",
        f"{took:.0f} s; {stored:,} stored, as wanted (the others are doubled or have no text)",
        "equal counts",
    )


def servers() -> dict[str, Callable[[], URL]]:
    """The database servers that are there: each makes a database."""
    found: dict[str, Callable[[], URL]] = {}
    for name, server in (("PostgreSQL", postgresql), ("MariaDB", mariadb)):
        try:
            found[name] = server().database
        except SkipTest as reason:
            print(f"{name}: {reason}")
    return found


@contextmanager
def _directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="domaeka-bench-store-") as directory:
        yield Path(directory)


@inlineCallbacks
def measure(reactor: Any, scale: Scale) -> Any:
    """Measure all, and print the table."""
    facts = machine.facts(None)
    for name in ("commit", "python", "libraries", "kernel", "processor"):
        print(f"- {name}: {facts[name]}")
    print(f"- load before: {machine.load()}\n\n| | figure | wanted |\n|---|---|---|", flush=True)
    databases = servers()
    with _directory() as directory:
        now = time.time()
        path = directory / "full.db"
        began = time.monotonic()
        fill(path, scale, now)
        size = path.stat().st_size
        row(
            f"SQLite's file of {scale.lines:,} lines",
            f"{size / 2**20:.0f} MiB, filled in {time.monotonic() - began:.0f} s",
        )
        empty = start_seconds(scale.starts)
        full = start_seconds(scale.starts, f"storage.url=sqlite:///{path}")
        row("start: empty, and with them", f"{empty:.2f} s, {full:.2f} s", "2 s more")
        yield read_and_remove(reactor, path, scale, now)
        path.unlink()
        yield write(reactor, "SQLite", sqlite_address(directory / "written.db"), scale)
        for name, database in databases.items():
            yield write(reactor, name, database(), scale)
        source = sqlite_address(directory / "previous.db")
        if "MariaDB" in databases:
            source = mariadb().database("CHARACTER SET utf8mb4")
        import_all(source, directory / "imported.db", scale)
    print(f"\n- load after: {machine.load()}")


def main() -> int:
    """@return: the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.store")
    parser.add_argument("--quick", action="store_true", help="small: whether it runs")
    options = parser.parse_args()
    failed: list[str] = []

    def run(reactor: Any) -> "Deferred[Any]":
        def over(failure: Any) -> None:
            failure.trap(BenchmarkError)
            failed.append(failure.getErrorMessage())

        measuring: Deferred[Any] = measure(reactor, QUICK if options.quick else FULL)
        return measuring.addErrback(over)

    try:
        task.react(run)
    except SystemExit as end:
        if failed:
            print(f"benchmarks: {failed[0]}", file=sys.stderr)
            return 1
        return int(end.code or 0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
