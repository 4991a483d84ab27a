"""
Phones that say a line every two seconds, and the fate of their lines.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from statistics import median
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.task import LoopingCall

from benchmarks.faults.network import ReactorIn
from domaeka.client import Client, Credentials, Fate, Identity, QueueFull, Reply, Said, Server
from domaeka.testing import FakePhone

#: Between two lines of a phone, in seconds.
PERIOD: Final = 2.0
#: A line that is answered later is of no use any more, in seconds.
SERVED_SECONDS: Final = 30.0
#: What is said so long after the end of a fault, in seconds, may be on a connection that is lost:
#: a server tells an old phone so every 2 s, and whatever that said before is behind lost bytes.
HEALED_SECONDS: Final = 2.5
PORT: Final = 9000
BOT: Final = "가게봇"
#: Every so many lines one is long, where long ones are asked for: more than a packet, compressed
#: as well.
LONG_EVERY: Final = 3
_PADDING_BYTES: Final = 2000


@dataclass
class Line:
    """
    Something that a phone said.

    @ivar said_at: when, in seconds since 1970.
    @ivar answered_at: when each answer to it came.
    @ivar told: true if the phone's owner was told that it was lost.
    """

    said_at: float
    answered_at: list[float]
    told: bool = False


class Phone(Protocol):
    """
    What both kinds of phones have.

    @ivar lines: all that it has said.
    @ivar answers: numbers of lines, in the order of the answers.
    """

    lines: list[Line]
    answers: list[int]

    def start(self, delay: float) -> None:
        """Connect after C{delay} seconds, and begin to talk."""

    def be_quiet(self) -> None:
        """Say no more, and wait for answers."""

    def stop(self) -> "Deferred[None]":
        """Leave."""


class Talking:
    """A phone."""

    def __init__(self, reactor: Any, room: int, long_lines: bool) -> None:
        self.lines: list[Line] = []
        self.answers: list[int] = []
        self.reactor = reactor
        self.room = f"방 {room}"
        self.channel_id = str(18398338829933000 + room)
        self._long_lines = long_lines
        self._talk = LoopingCall(self._say)
        self._talk.clock = reactor
        self._start_call: Any = None

    def start(self, delay: float) -> None:
        self._start_call = self.reactor.callLater(delay, self._start)

    def be_quiet(self) -> None:
        if self._start_call is not None and self._start_call.active():
            self._start_call.cancel()
        if self._talk.running:
            self._talk.stop()

    def _start(self) -> None:
        self.connect()
        self._talk.start(PERIOD)

    def _say(self) -> None:
        number = len(self.lines)
        line = Line(self.reactor.seconds(), [])
        self.lines.append(line)
        is_long = self._long_lines and number % LONG_EVERY == LONG_EVERY - 1
        padding = os.urandom(_PADDING_BYTES).hex() if is_long else ""
        self.say(line, f"# echo {number} {padding}".strip())

    def answered(self, text: str, time: float) -> None:
        """An answer was shown in the room."""
        number = int(text.partition(" ")[0])
        self.answers.append(number)
        self.lines[number].answered_at.append(time)

    def connect(self) -> None:
        raise NotImplementedError

    def say(self, line: Line, text: str) -> None:
        raise NotImplementedError


class OldPhone(Talking):
    """A phone with the script 3.3.3."""

    def __init__(
        self, reactor: ReactorIn, host: str, room: int, credentials: Credentials, long_lines: bool
    ) -> None:
        super().__init__(reactor, room, long_lines)
        self._phone = FakePhone(
            reactor,
            [TCP4ClientEndpoint(reactor, host, PORT)],
            credentials.secret_key,
            credentials.salt,
            script="3.3.3",
            identity=Identity(bot_name=BOT, device_id=f"{room:016x}"),
        )
        self._seen = 0

    def connect(self) -> None:
        self._phone.start()
        # It only tells of answers when it is asked.
        self._phone.when(self._look)

    def _look(self) -> bool:
        replies = self._phone.replies
        for reply in replies[self._seen :]:
            if reply.text is not None:
                self.answered(reply.text, reply.time)
        self._seen = len(replies)
        return False

    def say(self, line: Line, text: str) -> None:
        self._phone.say(text, self.room, self.channel_id)

    def stop(self) -> "Deferred[None]":
        self._phone.drop()  # a dead connection would never get rid of its buffer
        return self._phone.stop()


class LibraryPhone(Talking):
    """A phone with our client library."""

    def __init__(
        self, reactor: ReactorIn, host: str, room: int, credentials: Credentials, long_lines: bool
    ) -> None:
        super().__init__(reactor, room, long_lines)
        self._client = Client(
            reactor,
            [Server(host, PORT)],
            Identity(bot_name=BOT, device_id=f"{room:016x}"),
            credentials,
            self._replied,
        )

    def connect(self) -> None:
        self._client.startService()

    def _replied(self, reply: Reply) -> None:
        self.answered(str(reply.content), self.reactor.seconds())

    def say(self, line: Line, text: str) -> None:
        said = Said(
            room=self.room,
            channel_id=self.channel_id,
            sender="보내는이",
            text=text,
            is_group=True,
        )

        def ended(fate: Fate) -> None:
            line.told = fate is Fate.EXPIRED

        try:
            self._client.say(said).addCallback(ended)
        except QueueFull:
            line.told = True

    def stop(self) -> "Deferred[None]":
        return self._client.stopService()


@dataclass(frozen=True)
class Tally:
    """
    What the phones of a lane came to; times in seconds.

    @ivar back: for each phone, from the end of the fault to the first answer; infinite: none came.
    @ivar silence: for each phone, the longest time without an answer from the fault on.
    @ivar said: lines from shortly before the fault on.
    @ivar served: of these, those that were answered while it was of use.
    @ivar lost: of these, those that were never answered.
    @ivar lost_after: of those, the lines that were said when the fault was over for a moment.
    @ivar told: of those that are lost, the ones of which the phone's owner was told.
    @ivar latest: how long the latest answer took.
    @ivar doubled: answers to lines that had one.
    @ivar disordered: first answers that came behind one to a later line.
    """

    back: list[float]
    silence: list[float]
    said: int
    served: int
    lost: int
    lost_after: int
    told: int
    latest: float
    doubled: int
    disordered: int

    @property
    def median_back(self) -> float:
        """Of the phone in the middle."""
        return median(self.back)

    @property
    def last_back(self) -> float:
        """Of the last phone."""
        return max(self.back)

    @property
    def served_share(self) -> float:
        """Share of the lines that were served."""
        return self.served / self.said if self.said else 0.0


def _disorder(answers: Sequence[int]) -> int:
    """Count first answers that came behind one to a later line."""
    seen: set[int] = set()
    highest = -1
    found = 0
    for number in answers:
        if number not in seen:
            seen.add(number)
            found += number < highest
            highest = max(highest, number)
    return found


def _back(phone: Phone, ended_at: float) -> float:
    times = [time for line in phone.lines for time in line.answered_at if time >= ended_at]
    return min(times, default=inf) - ended_at


def _silence(phone: Phone, began_at: float, until: float) -> float:
    """It lasts until C{until} where no answer came any more."""
    times = [time for line in phone.lines for time in line.answered_at]
    before = max((time for time in times if time < began_at), default=began_at)
    moments = [before, *sorted(time for time in times if time >= began_at)]
    if not moments or moments[-1] < until:
        moments.append(until)
    return max(later - earlier for earlier, later in pairwise(moments))


def tally(
    phones: Sequence[Phone], lead: float, began_at: float, ended_at: float, quiet_at: float
) -> Tally:
    """
    Count.

    @param lead: lines count from so long before the fault on.
    @param quiet_at: when the phones stopped talking.
    """
    lines = [line for one in phones for line in one.lines if line.said_at >= began_at - lead]
    took = [line.answered_at[0] - line.said_at for line in lines if line.answered_at]
    lost = [line for line in lines if not line.answered_at]
    return Tally(
        back=[_back(phone, ended_at) for phone in phones],
        silence=[_silence(phone, began_at, quiet_at) for phone in phones],
        said=len(lines),
        served=sum(seconds <= SERVED_SECONDS for seconds in took),
        lost=len(lost),
        lost_after=sum(line.said_at > ended_at + HEALED_SECONDS for line in lost),
        told=sum(line.told for line in lost),
        latest=max(took, default=0.0),
        doubled=sum(max(0, len(line.answered_at) - 1) for line in lines),
        disordered=sum(_disorder(phone.answers) for phone in phones),
    )
