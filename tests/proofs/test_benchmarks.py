"""The benchmarks run.  People look at the figures; that there are some is tried here."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from benchmarks import phones, report, suite
from benchmarks.servers import BUILD, BenchmarkError, all_contestants, gateway
from tests.phone_host import why_not

ROOT = Path(__file__).parents[2]
#: As short as can be where the machine has other work, in seconds.
TINY = suite.Scale(
    windows=1,
    seconds=0.4,
    warmup=0.1,
    idle_windows=1,
    idle_seconds=2.5,
    idle_phones=60,
    first_phones=20,
    idle_warmup=0.1,
    ping_interval=2.0,
)


class BenchmarkTests(SynchronousTestCase):
    """Tests for L{benchmarks}."""

    def setUp(self) -> None:
        if not shutil.which("gcc") or not Path("/usr/include/openssl/sha.h").exists():
            raise SkipTest("there is no gcc, or no libssl-dev")
        if not shutil.which("make"):
            raise SkipTest("there is no make")
        self.assertEqual(self.make(), (0, ""))

    def make(self, *options: str) -> tuple[int, str]:
        """Build what is written in C: make's exit status, and what it complains of."""
        command = ["make", "--silent", *options, "bench-tools"]
        # Not as a part of the make that runs the tests.
        alone = {name: value for name, value in os.environ.items() if name != "MAKEFLAGS"}
        made = subprocess.run(
            command, cwd=ROOT, env=alone, capture_output=True, text=True, check=False
        )
        return made.returncode, made.stderr

    def test_no_warnings(self) -> None:
        """The compiler has nothing to say."""
        self.assertEqual(self.make(f"BENCH={Path(self.mktemp()).absolute()}"), (0, ""))

    def test_every_row(self) -> None:
        """Each contestant has a figure in each row, and the table shows them all."""
        # Ours differs from itself by a setting or two: once is enough.
        left_out = ("ours", "ours, async def")
        contestants = [one for one in all_contestants()[0] if one.name not in left_out]
        names = [one.name for one in contestants]
        results = suite.measure_all(contestants, TINY, None)
        for row in (*suite.ROWS, suite.IDLE):
            wanted = {one.name for one in contestants if one.has_tokens or not row.needs_tokens}
            self.assertEqual(set(results[row.key]), wanted, row.title)
            for name, windows in results[row.key].items():
                self.assertTrue(all(one.server_us > 0 for one in windows), f"{row.title}, {name}")
        table = report.table(results, names, [("log : C", "ours, chat log", "C")])
        self.assertEqual(len({line.count("|") for line in table.splitlines()}), 1)
        for row in (*suite.ROWS, suite.IDLE):
            self.assertIn(f"| {row.title} ", table)
        self.assertIn("busy", report.notes(results)[0])

    def test_wrong_answers(self) -> None:
        """What goes wrong in a window is told of, and gives no figure."""
        (row,) = (row for row in suite.ROWS if row.needs_tokens)
        with gateway() as server:
            stranger = server._replace(salt="another salt")
            running = suite.generator(stranger, [*row.options, "--duration=0.1"], None)
            error = self.assertRaises(BenchmarkError, suite.windows_of, running, row, "ours")
        self.assertIn("'closed'", str(error))

    def test_phones(self) -> None:
        """Each phone has figures, and compression of connections saves bytes."""
        if (why := why_not()) is not None:
            raise SkipTest(why)
        path = Path(self.mktemp()).absolute()
        command = [sys.executable, "-m", "benchmarks.phones", "--exchanges=10", "--idle=2"]
        run = subprocess.run(
            [*command, f"--json={path}"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        self.assertEqual((run.returncode, run.stderr), (0, ""))
        found = json.loads(path.read_text("utf-8"))["phones"]
        self.assertEqual(list(found), [phones.DEFLATE, phones.PLAIN, phones.LEGACY])
        self.assertTrue(all(value > 0 for one in found.values() for value in one.values()))
        self.assertLess(found[phones.DEFLATE]["up"], found[phones.PLAIN]["up"] / 2)

    def test_store(self) -> None:
        """Each figure of the store is there, and nothing is left behind."""
        command = [sys.executable, "-m", "benchmarks.store", "--quick"]
        # Short, for the servers' sockets, and open to their users.
        directory = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, directory)
        directory.chmod(0o755)
        run = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | {"TMPDIR": str(directory)},
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual((run.returncode, run.stderr), (0, ""))
        for words in ("start: empty", "a room's last 50", "removal of 3,000", "import of 2,000"):
            self.assertIn(f"| {words}", run.stdout)
        self.assertEqual(list(directory.iterdir()), [])

    def test_loopback_only_and_bounded(self) -> None:
        """The generator knows no other host, and takes no run that would not end."""
        for options in (["--host=192.0.2.1"], ["--duration=1000"], ["--warmup=nan"]):
            command = [str(BUILD / "loadgen"), "--port=1", "--secret=s", "--salt=s", *options]
            run = subprocess.run(command, capture_output=True, check=False, timeout=10)
            self.assertEqual(run.returncode, 2, options)
