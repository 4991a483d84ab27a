"""Recovery after faults, beside a model of the present system."""

import contextlib
import functools
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from benchmarks.faults.network import PREFIX, RUN_VARIABLE, why_not
from tests.proofs import LONG

ROOT = Path(__file__).parents[2]
#: All may come so much later, in seconds, and so many lines fewer may be served: the machine may
#: have ten others to serve.
SLACK = 10.0
#: Longest that a run may take, in seconds.
BOUND_SECONDS = 600.0


def started(*options: str) -> "subprocess.Popen[str]":
    """A run of the benchmark."""
    command = [sys.executable, "-m", "benchmarks.faults", f"--slack={SLACK}", *options]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def left_behind(pid: int) -> list[str]:
    """List the namespaces and processes of a run."""
    found = [path.name for path in Path("/run/netns").glob(f"{PREFIX}{pid}-*")]
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"{RUN_VARIABLE}={pid}".encode() in path.read_bytes().split(b"\0"):
                found.append(path.parent.name)
    return found


@functools.cache
def _run() -> tuple[int, str, dict[str, Any] | None]:
    """@return: the process that measured, what it complained of, and what it found."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "faults.json")
        run = started(f"--json={path}", *([] if LONG else ["--short"]))
        try:
            _, said = run.communicate(timeout=BOUND_SECONDS)
        except subprocess.TimeoutExpired:
            said = f"no end within {BOUND_SECONDS} s"
        finally:
            run.kill()
            run.wait()
        found = json.loads(path.read_text("utf-8")) if run.returncode == 0 else None
        return run.pid, said, found


def measured() -> tuple[int, dict[str, Any]]:
    """
    Measure, once for all tests.

    @return: the process that measured, and what it found.
    """
    pid, said, found = _run()
    if found is None:
        raise AssertionError(said)
    return pid, found


class FaultTests(SynchronousTestCase):
    """
    What is wanted of us after each fault, with slack: back soon, at most half of what the present
    system takes, nothing lost, doubled or out of order.
    """

    def setUp(self) -> None:
        if (why := why_not()) is not None:
            raise SkipTest(why)

    def shortcomings(self, row: str) -> Sequence[str]:
        """List the targets that are missed after a fault."""
        _, found = measured()
        self.assertIn(row, found["rows"])
        return [line for line in found["shortcomings"] if line.startswith(f"{row}, ")]

    def test_cut(self) -> None:
        """A cut of 30 s: phones are back within seconds, and have lost nothing."""
        self.assertEqual(self.shortcomings("cut-30"), [])

    def test_forgotten_flow(self) -> None:
        """A router that forgets a flow silently: the library notices, and has lost nothing."""
        self.assertEqual(self.shortcomings("nat"), [])

    def test_other_port(self) -> None:
        """A router that gives a flow another port: phones are back within seconds."""
        self.assertEqual(self.shortcomings("rebind"), [])

    def test_killed(self) -> None:
        """kill -9: phones are back within seconds."""
        self.assertEqual(self.shortcomings("kill"), [])

    def test_every_row(self) -> None:
        """In the long form, every other fault as well."""
        _, found = measured()
        tried = ("cut-30", "nat", "rebind", "kill")
        others = [line for line in found["shortcomings"] if not line.startswith(tried)]
        self.assertEqual(others, [])

    def test_ours_and_theirs(self) -> None:
        """The model of the present system behaves as that does: it never notices a lost flow."""
        _, found = measured()
        present = found["rows"]["nat"]["lanes"]["present"]
        self.assertGreater(present["lost"], present["said"] / 2)
        cut = found["rows"]["cut-30"]["lanes"]["present"]
        self.assertEqual((cut["lost"], cut["doubled"], cut["disordered"]), (0, 0, 0))

    def test_nothing_is_left(self) -> None:
        """Namespaces and servers go with the run."""
        self.assertEqual(left_behind(measured()[0]), [])

    def test_interrupted(self) -> None:
        """They go as well with a run that is ended in the middle."""
        run = started("--rows=kill", f"--json={self.mktemp()}")
        assert run.stderr is not None
        self.assertIn("servers start", run.stderr.readline())
        time.sleep(0.5)
        self.assertNotEqual(left_behind(run.pid), [])
        run.send_signal(signal.SIGTERM)
        run.communicate(timeout=BOUND_SECONDS)
        self.assertNotEqual(run.returncode, 0)
        self.assertEqual(left_behind(run.pid), [])
