"""
Number of files that an event passes in a real server, and how often it turns back.

A call I{turns back} if it enters a file that is on the stack already, below another file: a reader
has to keep both in mind.  Only files of domaeka/ count, and only the reactor's thread, without the
probe of the reactor's lag and the reactor's own clock.

Usage: C{python -m benchmarks.turns [--calls]}.  C{--calls} prints the tree of calls, too.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final, NamedTuple

import msgspec

from benchmarks.load import make_writer
from benchmarks.servers import ROOT, BenchmarkError, free_port, read_secrets, running
from domaeka.web.health import LagProbe
from domaeka.wire import Delivered, Greeting, Identity, PhoneWriter, Said, read_server_frame

#: Number of tries of each event: work that is done once a second may coincide with one.
TRIES: Final = 5
#: Timeout for everything, in seconds.
PATIENCE: Final = 20.0
#: Time after which the consequences of an answer, as writing to the store, are done, in seconds.
SETTLES: Final = 0.3
_PACKAGE: Final = f"{ROOT / 'domaeka'}{os.sep}"
_PROBE: Final = f"{LagProbe.__qualname__}."
_REACTOR_TIME: Final = "clock.py"
#: Name of the file with the recorded calls.
_RECORD: Final = "calls.json"
#: Signals that a recorded server takes beside its own.
_START, _STOP = signal.SIGUSR1, signal.SIGUSR2


class Call(msgspec.Struct, frozen=True, array_like=True):
    """
    A call.

    @ivar depth: number of our calls that contain it.
    @ivar back: True if it turns back.
    """

    depth: int
    file: str
    name: str
    back: bool


class Record(msgspec.Struct, frozen=True):
    """
    The recorded calls.

    @ivar came: number of calls at the time when the first bytes came from a phone.
    @ivar answered: number of calls once the last bytes had been sent to a phone, and the calls that
        led to it had returned.
    """

    calls: list[Call]
    came: int
    answered: int


class Row(NamedTuple):
    """Result for one event."""

    event: str
    calls: list[Call]

    @property
    def files(self) -> int:
        """Number of files that it passed."""
        return len({call.file for call in self.calls})

    @property
    def turns_back(self) -> int:
        """Number of times that it turned back."""
        return sum(call.back for call in self.calls)


class Recorder:
    """Recorder of the calls of this thread."""

    def __init__(self, path: Path, package: str = _PACKAGE) -> None:
        """
        @param path: the file to write.
        @param package: the folder whose files count, with a separator at its end.
        """
        self._path = path
        self._package = package
        self._calls: list[Call] = []
        self._stack: list[tuple[FrameType, str]] = []
        self._hidden: FrameType | None = None  # the probe, while it runs
        self._answers = False  # bytes were sent by the calls that run now
        self._came: int | None = None
        self._answered = 0

    def start(self) -> None:
        """Start, with no calls."""
        self._calls, self._stack, self._hidden = [], [], None
        self._answers, self._came, self._answered = False, None, 0
        sys.setprofile(self._happened)

    def stop(self, *ignored: object) -> None:
        """Stop, and write the file."""
        sys.setprofile(None)
        draft = self._path.with_suffix(".new")
        draft.write_bytes(msgspec.json.encode(Record(self._calls, self._came or 0, self._answered)))
        draft.rename(self._path)

    def _happened(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "c_call":
            if isinstance(getattr(argument, "__self__", None), socket.socket):
                self._on_socket(argument.__name__)
            return
        code = frame.f_code
        if not code.co_filename.startswith(self._package):
            return
        if event == "return":
            if frame is self._hidden:
                self._hidden = None
            if self._stack and self._stack[-1][0] is frame:
                self._stack.pop()
                self._run_through()
        elif event == "call" and self._hidden is None:
            file = code.co_filename.removeprefix(self._package)
            above = [name for _, name in self._stack]
            if code.co_qualname.startswith(_PROBE) and not above:
                self._hidden = frame
            if self._hidden is frame or file == _REACTOR_TIME:
                return
            back = file in above and file != above[-1]
            self._calls.append(Call(len(above), file, code.co_qualname, back))
            self._stack.append((frame, file))

    def _on_socket(self, method: str) -> None:
        """Note when bytes come from a phone, and when bytes are sent to one."""
        if method == "send":
            self._answers = True
            self._run_through()
        elif method in ("recv", "accept", "_accept") and self._came is None:
            self._came = len(self._calls)

    def _run_through(self) -> None:
        """Note when an answer is complete."""
        if self._answers and not self._stack:
            self._answers, self._answered = False, len(self._calls)


def serve(path: Path, arguments: list[str]) -> None:
    """Run a server that is recorded from its first signal until its end."""
    from twisted.scripts import twistd

    run: Any = twistd.run  # not typed
    recorder = Recorder(path)
    triggers: list[object] = []

    def start(number: int, frame: object) -> None:
        if not triggers:
            from twisted.internet import reactor as _reactor

            reactor: Any = _reactor  # a module, to mypy
            # twistd ends by the signal that ended it: no code runs after that.
            triggers.append(reactor.addSystemEventTrigger("after", "shutdown", recorder.stop))
        recorder.start()

    signal.signal(_START, start)
    signal.signal(_STOP, recorder.stop)
    sys.argv = ["twistd", *arguments]
    run()


class Recorded:
    """A recorded server, and its phones."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int, directory: Path) -> None:
        """@param directory: its state directory, where the record is written, too."""
        self.process = process
        self._port = port
        self._path = directory / _RECORD
        self._key, self._salt = read_secrets(directory)

    def recorded(self, event: Callable[[], object], *, ends: bool = False) -> list[Call]:
        """
        The calls that lead from C{event} to its answer.

        @param ends: True if the event ends the server: record all of that.
        """
        self._path.unlink(missing_ok=True)
        self.process.send_signal(_START)
        time.sleep(SETTLES)
        event()
        if ends:
            self.process.wait(PATIENCE)
        else:
            time.sleep(SETTLES)
            self.process.send_signal(_STOP)
        give_up = time.monotonic() + PATIENCE
        while not self._path.exists():
            if time.monotonic() > give_up:
                raise BenchmarkError("the server does not say what it recorded")
            time.sleep(0.01)
        record = msgspec.json.decode(self._path.read_bytes(), type=Record)
        return record.calls if ends else record.calls[record.came : record.answered]

    def phone(self, number: int) -> "Phone":
        """A phone, not connected."""
        identity = Identity(bot_name="봇", device_id=f"{number:016x}")
        return Phone(self._port, make_writer(identity, self._key, self._salt))


class Phone:
    """A phone with session tokens."""

    def __init__(self, port: int, writer: PhoneWriter) -> None:
        self._port = port
        self._writer = writer
        self._token: str | None = None
        self._rest = b""
        self.resumed = False

    def connect(self) -> None:
        """Connect, send the handshake, and wait for the greeting."""
        self._socket = socket.create_connection(("127.0.0.1", self._port), PATIENCE)
        self._socket.sendall(
            self._writer.handshake(
                signed=self._token is None, capabilities=["session"], session_token=self._token
            )
        )
        greeting = self._wait_for(Greeting)
        self._token = greeting.session_token
        self.resumed = greeting.resumed

    def hear_the_end(self) -> None:
        """Close once the server has, as phones in the field do."""
        while self._socket.recv(65_536):
            pass
        self._socket.close()

    def hang_up(self) -> None:
        """Close."""
        self._socket.close()

    def say(self) -> None:
        """Send a message, and wait for the answer."""
        said = Said(room="방", sender="나", text="# echo 안녕하세요", channel_id="1")
        self._socket.sendall(self._writer.chat(said))
        self._wait_for(Delivered)

    def _wait_for(self, kind: type[Any]) -> Any:
        while True:
            line, newline, rest = self._rest.partition(b"\n")
            if newline:
                self._rest = rest
                frame = read_server_frame(line)
                if isinstance(frame, kind):
                    return frame
                continue
            data = self._socket.recv(65_536)
            if not data:
                raise BenchmarkError("the server closed the connection")
            self._rest += data


@contextmanager
def _recorded_server() -> Iterator[Recorded]:
    with tempfile.TemporaryDirectory(prefix="domaeka-turns-") as directory:
        port = free_port()
        command = [sys.executable, "-m", "benchmarks.turns", f"--serve={directory}/{_RECORD}", "--"]
        command += ["-n", "--pidfile=", "domaeka", f"--state-dir={directory}"]
        command.append("--config=/dev/null")  # not a domaeka.toml that lies in the checkout
        command += [f"--port={port}", f"--http-port={free_port()}"]
        command += ["--set", "server.interface=127.0.0.1", "--set", 'limits.allow=["127.0.0.0/8"]']
        with running(command, port) as process:
            time.sleep(SETTLES)
            yield Recorded(process, port, Path(directory))


def _clearest(tries: list[list[Call]]) -> list[Call]:
    """The try with the fewest calls: nothing else coincided with it."""
    return min(tries, key=len)


def _terminate(server: Recorded, phones: list[Phone]) -> None:
    server.process.terminate()
    for phone in phones:
        phone.hear_the_end()


def measure() -> list[Row]:
    """The three events."""
    with _recorded_server() as server:
        phone = server.phone(1)
        phone.connect()
        phone.say()
        chat = _clearest([server.recorded(phone.say) for _ in range(TRIES)])
        handshakes = []
        for _ in range(TRIES):
            phone.hang_up()
            time.sleep(SETTLES)
            handshakes.append(server.recorded(phone.connect))
            if not phone.resumed:
                raise BenchmarkError("the server did not take its token")
    ends = []
    for _ in range(2):
        with _recorded_server() as server:
            phones = [server.phone(1), server.phone(2)]
            for phone in phones:
                phone.connect()
                phone.say()
            ends.append(server.recorded(partial(_terminate, server, phones), ends=True))
    return [
        Row("a chat message and its reply", chat),
        Row("a handshake with a session token", _clearest(handshakes)),
        Row("SIGTERM with two phones", _clearest(ends)),
    ]


def main() -> int:
    """@return: the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.turns")
    parser.add_argument("--calls", action="store_true", help="print the trees of calls, too")
    parser.add_argument("--serve", metavar="FILE", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        serve(options.serve, options.arguments)
        return 0
    try:
        rows = measure()
    except BenchmarkError as error:
        print(f"turns: {error}", file=sys.stderr)
        return 1
    if options.calls:
        for row in rows:
            print(f"{row.event}:")
            for call in row.calls:
                mark = "  <- turns back" if call.back else ""
                print(f"{'  ' * (call.depth + 1)}{call.file}: {call.name}{mark}")
            print()
    print(f"{'':34}{'files':>7}{'turns back':>12}{'calls':>7}")
    for row in rows:
        print(f"{row.event:34}{row.files:7}{row.turns_back:12}{len(row.calls):7}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
