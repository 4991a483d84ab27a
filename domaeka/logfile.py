"""A log file that others may move, remove or empty at any time."""

import os
import stat
import threading
from typing import Final

#: Size at which a log file is rotated, in bytes, and how many old ones are kept.
LOG_FILE_BYTES: Final = 16 * 1024 * 1024
LOG_FILES_KEPT: Final = 10
#: Mode of a log file that is made: at debug, chat may be in it.
LOG_FILE_MODE: Final = 0o640
#: Longest wait of a line for the new file of the program that renamed the old one, in seconds, and
#: the number of looks in that time.  Source: logrotate renames and then creates, within 0.1 ms or
#: so; a file of that name that exists by then it moves away, over the last one that it moved within
#: the hour.
NEW_FILE_SECONDS: Final = 0.01
NEW_FILE_TRIES: Final = 20


class LogFile:
    """
    Appends to a file by its name: before each line it checks that the name is still that of the
    open file, as C{logging.handlers.WatchedFileHandler} does.

    If the file was moved or removed, a new one is opened; while that is not possible, lines go to
    the one that was moved.  At L{LOG_FILE_BYTES} it is put aside as C{NAME.1}, with C{.1} as C{.2}
    and so on up to L{LOG_FILES_KEPT}.  Any thread may call it.
    """

    def __init__(self, path: str, uid: int = -1, gid: int = -1) -> None:
        """
        @param uid: the owner of the file, if it is made now; -1: no change.
        @param gid: likewise, its group.
        @raise OSError: it cannot be opened.
        """
        self._path = os.path.abspath(path)
        self._lock = threading.Lock()
        self._pause = threading.Event()  # never set
        self._torn = False  # the last line was written in part
        self._refused = False  # a new file could not be opened
        self._file = self._open(uid, gid)

    def write(self, text: str) -> None:
        """
        Append whole lines.

        @raise OSError: they are not written, or only in part.
        """
        data = text.encode("utf-8", "backslashreplace")
        with self._lock:
            self._look()
            if self._torn:
                data = b"\n" + data
            while data:
                written = os.write(self._file, data)
                self._torn = written < len(data)
                data = data[written:]

    def flush(self) -> None:
        """Nothing to do: no line is buffered."""

    def reopen(self) -> None:
        """Open it anew if it was moved or removed, without waiting for the next line."""
        with self._lock:
            self._look()

    def _look(self) -> None:
        """Open the right file."""
        there = self._there()
        if there is not None and os.path.samestat(self._mine, there):
            if not stat.S_ISREG(there.st_mode) or there.st_size < LOG_FILE_BYTES:
                return
            try:
                self._put_aside()
            except OSError:
                return  # it grows on
        elif there is None and not self._refused and os.fstat(self._file).st_nlink:
            self._wait_for_a_new_one()
        old = self._file
        try:
            self._file = self._open()
        except OSError:
            self._refused = True
            if not os.fstat(old).st_nlink:
                raise  # lines written there would be lost
            return
        self._refused = self._torn = False
        os.close(old)

    def _there(self) -> os.stat_result | None:
        """The file of our name."""
        try:
            return os.stat(self._path)
        except OSError:
            return None

    def _wait_for_a_new_one(self) -> None:
        """Wait for a program that renamed the file to make a new one: ours would be its error."""
        for _ in range(NEW_FILE_TRIES):
            if self._there() is not None:
                return
            self._pause.wait(NEW_FILE_SECONDS / NEW_FILE_TRIES)

    def _put_aside(self) -> None:
        """
        Rename the file, and first as many of those with a number as are in its way.

        @raise OSError: it stays.
        """
        names = [self._path, *(f"{self._path}.{n}" for n in range(1, LOG_FILES_KEPT + 1))]
        # If this breaks off it leaves a gap, with which the next call begins: no file is lost.
        gaps = (n for n, name in enumerate(names) if n and not os.path.lexists(name))
        for n in range(next(gaps, LOG_FILES_KEPT), 0, -1):
            os.replace(names[n - 1], names[n])

    def _open(self, uid: int = -1, gid: int = -1) -> int:
        # O_NONBLOCK: a pipe in its place must not block us.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
        try:
            number = os.open(self._path, flags | os.O_EXCL, LOG_FILE_MODE)
        except FileExistsError:
            number = os.open(self._path, flags, LOG_FILE_MODE)
        else:
            os.fchmod(number, LOG_FILE_MODE)  # whatever the umask
            os.fchown(number, uid, gid)
        os.set_blocking(number, True)
        self._mine = os.fstat(number)
        return number
