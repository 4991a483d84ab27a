"""
Database servers for tests: Debian's PostgreSQL and MariaDB, each started once, when it is wanted
first, on a socket of its own, and ended with the tests.
"""

import atexit
import functools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final

from sqlalchemy import URL, create_engine, text
from sqlalchemy.exc import OperationalError
from twisted.trial.unittest import SkipTest

#: How long a server may take to start, in seconds: this judges nothing.
_START_SECONDS: Final = 120.0


class StoreServer:
    """A server that runs."""

    def __init__(self, user: str, make: list[str], run: list[str], address: URL) -> None:
        """
        @param user: it runs as this user, where the tests run as root.
        @param make: the command that makes its data; C{DIR} in it is its directory.
        @param run: the command that runs it.
        @param address: of a database that is there from the beginning.
        """
        self._directory = Path(tempfile.mkdtemp(prefix="domaeka-"))
        self._directory.joinpath("tmp").mkdir()
        self._address = address.set(
            query={name: self._filled(str(value)) for name, value in address.query.items()}
        )
        self._numbers = iter(range(1_000_000))
        atexit.register(shutil.rmtree, self._directory, ignore_errors=True)
        # It ends also where the tests are killed.
        self._before = ["setpriv", "--pdeathsig=KILL"]
        if os.geteuid() == 0:
            account = pwd.getpwnam(user)
            for path in (self._directory, self._directory / "tmp"):
                os.chown(path, account.pw_uid, account.pw_gid)
            self._before += [f"--reuid={user}", f"--regid={account.pw_gid}", "--clear-groups"]
        self._log = self._directory / "log"
        with self._log.open("wb") as output:
            subprocess.run(
                self._command(make), stdout=output, stderr=output, check=True, cwd=self._directory
            )
        self._run = self._command(run)
        self._engine = create_engine(self._address, isolation_level="AUTOCOMMIT")
        atexit.register(self._end)
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                self._run,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self._directory,
            )
        until = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                raise AssertionError(f"it has not started: {self._log.read_text(errors='replace')}")
            time.sleep(0.1)

    def stop(self) -> None:
        """Stop it in order, without waiting for those who are connected."""
        self._engine.dispose()
        self._process.send_signal(signal.SIGINT if self.is_postgresql else signal.SIGTERM)
        self._process.wait()

    def _end(self) -> None:
        """End it at once, whatever is lost."""
        self._engine.dispose()
        self._process.send_signal(signal.SIGQUIT if self.is_postgresql else signal.SIGKILL)
        self._process.wait()

    def _filled(self, word: str) -> str:
        return word.replace("DIR", str(self._directory))

    def _command(self, words: list[str]) -> list[str]:
        return [*self._before, *map(self._filled, words)]

    def _answers(self) -> bool:
        try:
            with self._engine.connect():
                return True
        except OperationalError:
            return False

    @property
    def is_running(self) -> bool:
        """True if it has not been stopped."""
        return self._process.poll() is None

    @property
    def is_postgresql(self) -> bool:
        """True if it is PostgreSQL, false if it is MariaDB."""
        return self._address.get_backend_name() == "postgresql"

    def database(self, options: str = "") -> URL:
        """Make a database.  @param options: of C{CREATE DATABASE}.  @return: its address."""
        name = f"domaeka_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name} {options}")
        return self._address.set(database=name)

    def execute(self, statement: str) -> None:
        """Carry out a statement."""
        with self._engine.connect() as connection:
            connection.execute(text(statement))


@functools.cache
def postgresql() -> StoreServer:
    """The PostgreSQL server.  @raise SkipTest: none is installed."""
    places = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    found = max(places, key=lambda path: float(path.parts[4]), default=None)
    if found is None:
        raise SkipTest("Debian's package postgresql is not installed")
    make = f"{found} --pgdata=DIR/data --username=domaeka --auth=trust --encoding=UTF8 --no-sync"
    run = f"{found.with_name('postgres')} -D DIR/data -k DIR -c listen_addresses= -c fsync=off"
    return StoreServer(
        "postgres",
        [*make.split(), "--locale=C"],
        run.split(),
        URL.create("postgresql+psycopg", "domaeka", database="postgres", query={"host": "DIR"}),
    )


@functools.cache
def mariadb() -> StoreServer:
    """
    A MariaDB server that makes tables of MyISAM's in latin1, if not told otherwise.

    @raise SkipTest: none is installed.
    """
    found = shutil.which("mariadbd", path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        raise SkipTest("Debian's package mariadb-server is not installed")
    # Each server removes at its start what it finds of temporary tables in a directory it shares.
    common = "--no-defaults --datadir=DIR/data --tmpdir=DIR/tmp"
    make = f"mariadb-install-db {common} --auth-root-authentication-method=normal --skip-test-db"
    run = (
        f"{found} {common} --socket=DIR/socket --pid-file=DIR/pid --skip-networking "
        "--default-storage-engine=MyISAM --character-set-server=latin1 "
        "--innodb-flush-log-at-trx-commit=0 --innodb-buffer-pool-size=64M"
    )
    return StoreServer(
        "mysql",
        make.split(),
        run.split(),
        URL.create("mysql+pymysql", "root", query={"unix_socket": "DIR/socket"}),
    )
