"""Tests for L{domaeka.logfile}."""

import errno
import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from domaeka import logfile
from domaeka.logfile import LOG_FILE_MODE, LOG_FILES_KEPT, LogFile


class LogFileTests(SynchronousTestCase):
    """Tests for L{LogFile}."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.path = self.directory / "x.log"
        self.file = LogFile(str(self.path))
        self.file.write("one\n")

    def moved(self, name: str = "x.log.1") -> Path:
        """Somebody renames the file."""
        return self.path.rename(self.directory / name)

    def test_moved(self) -> None:
        """A file that was renamed keeps what it has, and the next line begins a new one."""
        old = self.moved()
        self.file.write("two\n")
        self.assertEqual((old.read_text(), self.path.read_text()), ("one\n", "two\n"))
        self.assertEqual(self.path.stat().st_mode & 0o777, LOG_FILE_MODE)

    def test_replaced(self) -> None:
        """A new file that is there already is taken as it is, with its mode."""
        self.moved()
        self.path.write_text("")
        self.path.chmod(0o604)
        self.file.write("two\n")
        self.assertEqual(self.path.read_text(), "two\n")
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o604)

    def test_removed(self) -> None:
        """A file that was removed is made again."""
        self.path.unlink()
        self.file.write("two\n")
        self.assertEqual(self.path.read_text(), "two\n")

    def test_emptied(self) -> None:
        """A file that was emptied goes on from its beginning, without a hole."""
        os.truncate(self.path, 0)
        self.file.write("two\n")
        self.assertEqual(self.path.read_bytes(), b"two\n")

    def test_told(self) -> None:
        """At a signal the new file is there, without waiting for a line; one in place stays."""
        self.file.reopen()
        self.assertEqual(os.listdir(self.directory), ["x.log"])
        self.moved()
        self.file.reopen()
        self.assertEqual(self.path.read_text(), "")

    def test_cannot_be_opened_anew(self) -> None:
        """Lines go on to the file that was moved until there can be a new one."""
        old = self.moved()
        self.path.mkdir()
        self.file.write("two\n")
        self.path.rmdir()
        self.file.write("three\n")
        self.assertEqual((old.read_text(), self.path.read_text()), ("one\ntwo\n", "three\n"))

    def test_gone_for_good(self) -> None:
        """A line that would go to a file that was removed is not taken: it would be lost."""
        self.path.unlink()
        self.path.mkdir()
        self.assertRaises(OSError, self.file.write, "two\n")

    def test_size(self) -> None:
        """A large file is put aside, so many of those are kept, and nothing is lost before."""
        self.patch(logfile, "LOG_FILE_BYTES", 4)
        for n in range(LOG_FILES_KEPT + 3):
            self.file.write(f"{n:03}\n")
        self.assertEqual(len(os.listdir(self.directory)), LOG_FILES_KEPT + 1)
        self.assertEqual(self.path.read_text(), f"{LOG_FILES_KEPT + 2:03}\n")
        self.assertEqual((self.directory / f"x.log.{LOG_FILES_KEPT}").read_text(), "002\n")

    def test_cannot_be_put_aside(self) -> None:
        """A file that cannot be renamed grows on, and costs none of those put aside before."""
        self.patch(logfile, "LOG_FILE_BYTES", 4)
        self.file.write("two\n")
        replace = os.replace

        def refuse(old: str, new: str) -> None:
            if old == os.path.abspath(self.path):
                raise OSError(errno.EBUSY, "a file that is mounted")
            replace(old, new)

        self.patch(os, "replace", refuse)
        for _ in range(LOG_FILES_KEPT + 3):
            self.file.write("three\n")
        self.assertEqual(sorted(os.listdir(self.directory)), ["x.log", "x.log.2"])
        self.assertEqual((self.directory / "x.log.2").read_text(), "one\n")

    def test_full_disk(self) -> None:
        """A line that was written in part spoils none of those that come after it."""
        write, room = os.write, [2]

        def write_what_fits(number: int, data: bytes) -> int:
            if not room[0]:
                raise OSError(errno.ENOSPC, "full")
            room[0] -= len(data[: room[0]])
            return write(number, data[: room[0] + 2])

        self.patch(os, "write", write_what_fits)
        self.assertRaises(OSError, self.file.write, "two\n")
        self.patch(os, "write", write)
        self.file.write("three\n")
        self.assertEqual(self.path.read_text(), "one\ntw\nthree\n")

    def test_umask(self) -> None:
        """Who may read a new file does not hang on the umask that a daemon has."""
        self.addCleanup(os.umask, os.umask(0o077))
        self.moved()
        self.file.write("two\n")
        self.assertEqual(self.path.stat().st_mode & 0o777, LOG_FILE_MODE)

    def test_no_files(self) -> None:
        """A device will do; a pipe that nobody reads is refused, at once."""
        LogFile(os.devnull).write("one\n")
        os.mkfifo(self.directory / "pipe")
        self.assertRaises(OSError, LogFile, str(self.directory / "pipe"))
