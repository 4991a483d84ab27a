"""How the log looks under a real C{twistd}."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

PLUGIN = """
from twisted.application.service import ServiceMaker
logprobe = ServiceMaker("logprobe", "logprobe", "logs and stops", "logprobe")
"""

MODULE = r"""
import logging
import sys
from threading import Thread

from twisted.application.service import Service
from twisted.internet import reactor
from twisted.logger import Logger
from twisted.python.usage import Options as _Options

from domaeka import logs
from domaeka.config import LoggingSettings

class Options(_Options):
    optParameters = [["format", None, "text"]]
    optFlags = [["fail", None]]

class Probe(Service):
    log = Logger()

    def startService(self):
        self.log.debug("not shown")
        self.log.info("hello {name}", name="x\ny\x1b[31m")
        print("printed")
        logging.getLogger("shop").warning("ordered %s", "soup")
        thread = Thread(target=int, args=("s3cret",))
        thread.start()
        thread.join()
        try:
            1 / 0
        except ZeroDivisionError:
            self.log.failure("failed")
        reactor.callLater(0, reactor.stop)

def makeService(options):
    settings = LoggingSettings(format=options["format"])
    observer = logs.observer_for(settings, options.parent, reactor)
    observer.lead_standard_logging()
    with observer.while_importing():
        print("imported", sys.stdout.encoding)
        logging.getLogger("shop").info("opened")
        if options["fail"]:
            raise SystemExit("cannot be imported")
    root = logs.LoggedService(observer)
    Probe().setServiceParent(root)
    return root
"""

TWISTD = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()"]
#: Longest that twistd may take to start and stop, in seconds.
PATIENCE = 120
LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (info |warn |critical) +[\w.]+: ")


class TwistdLogTests(SynchronousTestCase):
    """Tests for L{domaeka.logs.LoggedService} with the twistd command."""

    def setUp(self) -> None:
        self.home = Path(self.mktemp()).absolute()
        (self.home / "twisted/plugins").mkdir(parents=True)
        (self.home / "twisted/plugins/logprobe_plugin.py").write_text(PLUGIN)
        (self.home / "logprobe.py").write_text(MODULE)

    def twistd(self, *arguments: str) -> str:
        """Run twistd.  @return: what it printed."""
        root = Path(__file__).parents[2]
        environment = {**os.environ, "PYTHONPATH": f"{self.home}:{root}"}
        done = subprocess.run(
            [*TWISTD, *arguments],
            cwd=self.home,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
        self.assertEqual(done.stderr, "")
        return done.stdout

    def check_text(self, text: str) -> None:
        """Each event is one line in our format, twistd's own included; tracebacks are indented."""
        lines = text.splitlines()
        for line in lines:
            self.assertTrue(LINE.match(line) or line.startswith("\t"), line)
        for words in (
            *("starting up.", r": hello x\ny\x1b[31m", ": printed", "Server Shut Down."),
            *("info     stdout: imported utf-8", "info     shop: opened"),
            *("warn     shop: ordered soup", "has ended by an error"),
        ):
            self.assertEqual(sum(words in line for line in lines), 1, words)
        self.assertIn("\tZeroDivisionError: division by zero", lines)
        self.assertNotIn("not shown", text)
        self.assertNotIn("s3cret", text)

    def test_foreground(self) -> None:
        """In the foreground the log is the standard output."""
        self.check_text(self.twistd("-n", "logprobe"))

    def test_that_cannot_be_imported(self) -> None:
        """What a bot printed before it failed is shown, for that may say why."""
        with self.assertRaises(subprocess.CalledProcessError) as caught:
            self.twistd("-n", "logprobe", "--fail")
        printed = caught.exception.stdout.splitlines()
        self.assertEqual(len(printed), 2)
        self.assertIn("info     stdout: imported", printed[0])
        self.assertIn("cannot be imported", caught.exception.stderr)

    def test_foreground_json(self) -> None:
        """With JSON every line is an object with the stable keys."""
        lines = self.twistd("-n", "logprobe", "--format", "json").splitlines()
        events = [json.loads(line) for line in lines]
        for event in events:
            self.assertLessEqual({"time", "level", "logger", "message"}, set(event))
        self.assertIn("ZeroDivisionError", "".join(event.get("failure", "") for event in events))

    def test_file(self) -> None:
        """C{--logfile} is heeded, and the new file is not for everybody's eyes."""
        self.assertEqual(self.twistd("-n", "--logfile", "here.log", "logprobe"), "")
        path = self.home / "here.log"
        self.check_text(path.read_text(encoding="utf-8"))
        self.assertEqual(path.stat().st_mode & 0o777, 0o640)

    def test_daemon(self) -> None:
        """A daemon logs into twistd.log unless told otherwise."""
        self.twistd("logprobe")
        path = self.home / "twistd.log"
        end = time.monotonic() + PATIENCE
        while "Server Shut Down." not in path.read_text(encoding="utf-8"):
            self.assertLess(time.monotonic(), end, "the daemon did not end")
            time.sleep(0.05)
        self.check_text(path.read_text(encoding="utf-8"))
