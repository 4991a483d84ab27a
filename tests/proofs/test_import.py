"""
The import from the previous system's own kind of database, MariaDB, by real processes that are
killed while they are at work.
"""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, select
from twisted.trial.unittest import SynchronousTestCase

from domaeka.store.chatlog import CHAT_LINES
from domaeka.store.devices import DEVICES
from domaeka.store.imports.importer import IMPORTS
from domaeka.store.rooms import ROOMS
from tests.integration.support import ROOT
from tests.previous_system import PreviousSystem
from tests.proofs import LONG
from tests.proofs.store_servers import StoreServer, mariadb, postgresql

LINES = 200_000 if LONG else 20_000
KILLS = 10 if LONG else 3
_POLL_SECONDS = 0.02


class ImportTests(SynchronousTestCase):
    """C{domaeka import} from MariaDB."""

    def setUp(self) -> None:
        self.server = mariadb()
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir(parents=True)
        self.store = self.directory / "domaeka.db"
        self.environment = {
            **{name: os.environ[name] for name in os.environ if "DOMAEKA" not in name},
            "PYTHONPATH": str(ROOT),
            "DOMAEKA_STORAGE_CHAT_LOG_DAYS": "100000",
        }

    def fill(self, lines: int) -> PreviousSystem:
        """Make the previous system's database, which its reader cannot write to."""
        old = PreviousSystem(lines)
        old.lines[lines // 2]["message"] = "그림\0글"
        self.previous = self.server.database("CHARACTER SET utf8mb4")
        engine = create_engine(self.previous)
        old.fill(engine)
        engine.dispose()
        self.server.execute("CREATE USER IF NOT EXISTS reader@localhost")
        self.server.execute(f"GRANT SELECT ON {self.previous.database}.* TO reader@localhost")
        return old

    def start(self, *options: str) -> "subprocess.Popen[bytes]":
        """Start an import."""
        address = self.previous.set(username="reader").render_as_string(hide_password=False)
        command = ["-c", "from domaeka.cli import main; main()", "import", address, "--json"]
        process = subprocess.Popen(
            [sys.executable, *command, f"--state-dir={self.directory}", *options],
            cwd=self.directory,
            env=self.environment,
            stdout=subprocess.PIPE,
        )
        self.addCleanup(process.stdout.close)  # type: ignore[union-attr]
        return process

    def finish(self, process: "subprocess.Popen[bytes]") -> dict[str, Any]:
        """Its report."""
        output, _ = process.communicate()
        self.assertEqual(process.returncode, 0)
        return dict(json.loads(output))

    def last_id(self) -> int:
        """How far the store has the lines."""
        if not self.store.exists():
            return 0
        with closing(sqlite3.connect(f"file:{self.store}?mode=ro", uri=True)) as connection:
            try:
                (found,) = connection.execute(f"SELECT max(last_id) FROM {IMPORTS.name}").fetchone()
            except sqlite3.Error:  # not made yet
                return 0
        return found or 0

    def wanted(self, old: PreviousSystem) -> list[tuple[str, str, str | None, str]]:
        """Bot, room, log id and text of the lines that must come out, in order."""
        wanted: dict[Any, tuple[str, str, str | None, str]] = {}
        for row in old.lines:
            room = row["channel_id"] or row["room_name"] or ""
            times = (row["server_timestamp"], row["client_timestamp"], row["created_at"])
            if row["message"] is not None and any(times):
                log_id = row["log_id"] or None
                line = (row["bot_name"], room, log_id, row["message"].replace("\0", "\ufffd"))
                wanted.setdefault((row["bot_name"], room, log_id or row["id"]), line)
        return list(wanted.values())

    def assert_same(self, engine: Engine, old: PreviousSystem) -> None:
        """All is in the store, once."""
        columns = (CHAT_LINES.c[name] for name in ("bot_name", "room_id", "log_id", "text"))
        with engine.connect() as connection:
            lines = connection.execute(select(*columns).order_by(CHAT_LINES.c.id)).all()
            devices = connection.execute(select(DEVICES.c.bot_name, DEVICES.c.device_id)).all()
            rooms = connection.execute(select(ROOMS.c.bot_name, ROOMS.c.room_id)).all()
        wanted = self.wanted(old)
        self.assertEqual(len(lines), len(wanted))
        self.assertTrue([tuple(line) for line in lines] == wanted, "other lines, or another order")
        self.assertEqual(
            sorted(map(tuple, devices)),
            sorted({(d["bot_name"], d["device_id"]) for d in old.devices}),
        )
        self.assertEqual(len(rooms), len({(r["bot_name"], r["room_id"]) for r in old.rooms}))
        engine.dispose()

    def test_killed(self) -> None:
        """An import that is killed again and again comes to the same as one that is not."""
        old = self.fill(LINES)
        dry = self.finish(self.start("--dry-run"))
        self.assertFalse(self.store.exists())
        for kill in range(1, KILLS + 1):
            process = self.start()
            goal = max(self.last_id() + 1, kill * LINES // (2 * KILLS))
            while self.last_id() < goal and process.poll() is None:
                time.sleep(_POLL_SECONDS)
            process.kill()
            process.wait()
        report = self.finish(self.start())
        if process.returncode == -signal.SIGKILL:
            self.assertGreater(report["after_id"], 0)
        self.assertEqual(report["after_id"] + report["lines"]["read"], LINES)
        self.assert_same(create_engine(f"sqlite:///{self.store}"), old)
        self.assertEqual(dry["lines"]["taken"], len(self.wanted(old)))
        again = self.finish(self.start())
        self.assertEqual([again[part]["taken"] for part in ("devices", "rooms", "lines")], [0] * 3)

    def into(self, server: StoreServer) -> None:
        """The store is a database on a server."""
        old = self.fill(2500)
        store = server.database()
        self.environment["DOMAEKA_STORAGE_URL"] = store.render_as_string(hide_password=False)
        report = self.finish(self.start())
        self.assertEqual((report["devices"]["taken"], report["lines"]["read"]), (16, 2500))
        self.assertEqual(self.finish(self.start())["lines"]["read"], 0)
        self.assert_same(create_engine(store), old)

    def test_into_mariadb(self) -> None:
        """The store may be a database beside it, on the same server."""
        self.into(mariadb())

    def test_into_postgresql(self) -> None:
        """The store may be PostgreSQL's."""
        self.into(postgresql())
