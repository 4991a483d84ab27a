"""
Time until dead lines are noticed, and its cost, in virtual time.

Usage: C{python -m benchmarks.liveness_simulation}.  Several rules run on the same lines of several
kinds; the figures are the same in each run.
"""

import sys
from heapq import heappop, heappush
from math import ceil, inf
from random import Random
from statistics import mean
from typing import NamedTuple, Protocol

import msgspec

from domaeka.config import PingSettings
from domaeka.policies.liveness import FINISH_SECONDS, Liveness, Ping, Responsiveness

#: Lines of each kind, and the hours for which each is watched while it lives.
LINES = 60
HOURS = 6.0
#: Further lines that die in their first 20 minutes, as many that die later, and the times of
#: death, in seconds.
DEATHS = 100
DEATH_SECONDS = ((60.0, 1200.0), (1200.0, 4800.0))
#: Time after which a phone reconnects once it has noticed the end of its connection, in seconds.
RETURN_SECONDS = 4.0
#: Mean pause between two messages from a phone, in seconds.
CHAT_SECONDS = 180.0
#: First retransmission timeout, beside the round trip, and longest one, in seconds.
RETRANSMISSION_SECONDS = (0.2, 120.0)


class Profile(NamedTuple):
    """A kind of line; durations are uniform, pauses between them are exponential."""

    name: str
    round_trip: float  # median, in seconds
    spread: float  # sigma of its logarithm
    outage_every: float = inf  # nothing passes, in seconds
    outage: tuple[float, float] = (0.0, 0.0)
    freeze_every: float = inf  # the kernel acknowledges, the app does not run
    freeze: tuple[float, float] = (0.0, 0.0)
    nat: float = inf  # idle flows are forgotten after this
    thinks: tuple[float, float] = (0.0, 0.0)  # time until the app answers


PROFILES = (
    Profile("Wi-Fi", 0.03, 0.5, 7200.0, (1.0, 8.0)),
    Profile("LTE", 0.08, 0.6, 1800.0, (2.0, 15.0)),
    Profile("subway", 0.15, 0.8, 240.0, (5.0, 30.0)),
    Profile("NAT 60 s", 0.05, 0.5, 7200.0, (1.0, 8.0), nat=60.0),
    Profile("NAT 95 s", 0.05, 0.5, 7200.0, (1.0, 8.0), nat=95.0),
    Profile("NAT 120 s", 0.05, 0.5, 7200.0, (1.0, 8.0), nat=120.0),
    Profile("slow phone", 0.08, 0.6, 1800.0, (2.0, 15.0), thinks=(12.0, 25.0)),
    Profile("doze", 0.05, 0.5, freeze_every=1800.0, freeze=(30.0, 600.0)),
)


class Spans:
    """Periods of trouble on a line."""

    def __init__(self, random: Random, every: float, length: tuple[float, float]) -> None:
        self._random = random
        self._every = every
        self._length = length
        self._spans: list[tuple[float, float]] = []
        self._end = 0.0

    def end_of(self, time: float) -> float:
        """End of the period that contains C{time}; C{time} itself if there is none."""
        while self._end <= time and self._every < inf:
            start = self._end + self._random.expovariate(1 / self._every)
            self._end = start + self._random.uniform(*self._length)
            self._spans.append((start, self._end))
        for start, end in reversed(self._spans):
            if end <= time:
                break
            if start <= time:
                return end
        return time


class Line:
    """
    A phone and its line: packets arrive, late or in time, or are lost.

    @ivar dead_at: the time after which everything is lost.
    @ivar chat_at: the time of the phone's next message.
    """

    def __init__(self, profile: Profile, seed: str) -> None:
        random = Random(seed)
        self._profile = profile
        self._noise = Random(seed + " noise")
        self._outages = Spans(random, profile.outage_every, profile.outage)
        self._freezes = Spans(Random(seed + " app"), profile.freeze_every, profile.freeze)
        self._chat = Random(seed + " chat")
        self.dead_at = inf
        self.connect(0.0)

    def connect(self, time: float) -> None:
        """A connection is made."""
        self._last_packet = time
        self.chat_at = time + self._chat.expovariate(1 / CHAT_SECONDS)
        self._stuck_until = [0.0, 0.0]  # down, up
        self._arrived = 0.0
        self.unacknowledged_since = inf

    def passes(self, time: float) -> bool:
        """True if a packet sent at C{time} arrives; such a packet keeps the flow alive."""
        if time - self._last_packet > self._profile.nat:
            self.dead_at = min(self.dead_at, self._last_packet + self._profile.nat)
        if time >= self.dead_at or self._outages.end_of(time) > time:
            return False
        self._last_packet = max(self._last_packet, time)
        return True

    def usable_at(self, time: float) -> float:
        """Earliest time, C{time} or later, at which the phone can connect."""
        return self._outages.end_of(self._freezes.end_of(time))

    def deliver(self, time: float, up: bool) -> float:
        """Arrival of bytes given to TCP at C{time}: at once, or with a retransmission."""
        pause, longest = RETRANSMISSION_SECONDS
        pause += self._round_trip()
        at = max(time, self._stuck_until[up])
        while not self.passes(at):
            if at >= self.dead_at:
                at = inf
                break
            at += pause
            pause = min(2 * pause, longest)
        self._stuck_until[up] = at
        return at

    def ping(self, time: float) -> tuple[float, float]:
        """@return: the times at which a ping's TCP acknowledgement and its pong come back."""
        arrived = self.deliver(time, up=False)
        if arrived == inf:
            return inf, inf
        trip = self._round_trip()
        thought = self._noise.uniform(*self._profile.thinks)
        answered = self._freezes.end_of(arrived) + trip / 2 + thought
        return arrived + trip, self._in_order(self.deliver(answered, up=True) + trip / 2)

    def chat(self) -> float:
        """The phone sends a message at L{chat_at}.  @return: the time of its arrival."""
        said_at = self._freezes.end_of(self.chat_at)
        self.chat_at += self._chat.expovariate(1 / CHAT_SECONDS)
        return self._in_order(self.deliver(said_at, up=True))

    def _in_order(self, time: float) -> float:
        """Arrival of bytes that were sent after all others."""
        self._arrived = max(self._arrived, time)
        return self._arrived

    def _round_trip(self) -> float:
        return self._profile.round_trip * self._noise.lognormvariate(0.0, self._profile.spread)


class Rule(Protocol):
    """Rule for pings and for giving up; evaluated at whole seconds."""

    def heard(self, now: float) -> None:
        """Bytes were received."""

    def pong(self, sent_at: float, now: float, round_trip: float) -> None:
        """The ping sent at C{sent_at} was answered."""

    def ping_due(self, now: float) -> bool:
        """Return True if a ping is due."""

    def gives_up(self, now: float, line: Line) -> bool:
        """Return True if the connection is to be closed."""

    def due(self, line: Line) -> float:
        """Time before which nothing is due, unless something is received."""

    def ended(self) -> None:
        """The connection was closed."""


class Ours:
    """The rule of the gateway, with its settings."""

    def __init__(
        self,
        settings: PingSettings,
        random: Random,
        now: float,
        device: Responsiveness,
        pings_judge: bool = True,
        kernel_seconds: float = inf,
    ) -> None:
        """
        @param device: record of its earlier connections.
        @param pings_judge: True if unanswered pings end a connection.
        @param kernel_seconds: time without an acknowledgement that also ends a connection.
        """
        self.liveness: Liveness = Liveness(settings, now, random)
        self.liveness.is_of(device, now)
        self._pings_judge = pings_judge
        self._kernel_seconds = kernel_seconds

    def heard(self, now: float) -> None:
        self.liveness.last_heard = now

    def pong(self, sent_at: float, now: float, round_trip: float) -> None:
        ping = self.liveness.outstanding(f"{sent_at}")
        if ping is not None:
            self.liveness.pong(ping, now, round_trip)

    def ping_due(self, now: float) -> bool:
        if self.liveness.ping_due(now):
            self.liveness.ping_left(Ping(f"{now}", now))
            return True
        return False

    def gives_up(self, now: float, line: Line) -> bool:
        if now - line.unacknowledged_since >= self._kernel_seconds:
            return True
        taken = line.unacknowledged_since == inf
        return self._pings_judge and self.liveness.is_stale(now, taken)

    def due(self, line: Line) -> float:
        return min(self.liveness.due, line.unacknowledged_since + self._kernel_seconds)

    def ended(self) -> None:
        self.liveness.ended()


class KeepAliveAlone:
    """No pings: TCP keep-alive after 30 s, 9 times every 10 s; closes after 600 s of silence."""

    def __init__(self, now: float) -> None:
        self._heard_at = self._read_at = self._probe_at = now

    def heard(self, now: float) -> None:
        self._heard_at = self._read_at = now

    def pong(self, sent_at: float, now: float, round_trip: float) -> None:
        pass

    def ping_due(self, now: float) -> bool:
        return False

    def gives_up(self, now: float, line: Line) -> bool:
        if now - self._heard_at >= 30.0 and now - self._probe_at >= 10.0:
            self._probe_at = now
            if line.passes(now):
                self._heard_at = now
        return now - self._heard_at >= 120.0 or now - self._read_at >= 600.0

    def due(self, line: Line) -> float:
        return min(max(self._heard_at + 30.0, self._probe_at + 10.0), self._read_at + 600.0)

    def ended(self) -> None:
        pass


def make_rule(name: str, random: Random, now: float, device: Responsiveness) -> Rule:
    """The rule of a new connection."""
    if name == "keep-alive alone":
        return KeepAliveAlone(now)
    return Ours(
        PingSettings(adaptive="adaptive" in name),
        random,
        now,
        device,
        name != "present system",
        KERNEL_SECONDS.get(name, inf),
    )


RULES = (
    "adaptive, finished",
    "adaptive and TCP_USER_TIMEOUT",
    "fixed 30/90",
    "keep-alive alone",
    "present system",
)
#: Time without an acknowledgement that ends a connection: of a phone of the gateway, of one of its
#: clients, and where pings have no time-out, so that Linux gives up (tcp_retries2).
KERNEL_SECONDS = {
    "adaptive, finished": FINISH_SECONDS,
    "adaptive and TCP_USER_TIMEOUT": 60.0,
    "present system": 924.6,
}


class Outcome(msgspec.Struct):
    """
    Results of a rule on the lines of a kind.

    @ivar noticed: seconds from death to notice, for lines that died early and late.
    """

    noticed: tuple[list[float], list[float]]
    hours: float = 0.0
    pings: int = 0
    false_closes: int = 0


def watch(line: Line, rule_name: str, seed: str, hours: float, outcome: Outcome) -> None:
    """Run a line until its death is noticed, or for C{hours}."""
    random = Random(seed)
    now = 0.0
    end = hours * 3600
    device = Responsiveness()
    while now < min(end, line.dead_at):  # a death while disconnected cannot be noticed
        rule = make_rule(rule_name, random, now, device)
        line.connect(now)
        pings: list[tuple[float, int]] = []  # when acknowledged
        pongs: list[tuple[float, int]] = []
        sent_at: list[float] = []
        chats: list[float] = []
        while True:
            events = [queue[0] for queue in (pings, pongs) if queue]
            soonest = min((at for at, _ in events), default=inf)
            soonest = min(soonest, line.chat_at, chats[0] if chats else inf, rule.due(line), end)
            now = max(now + 1.0, ceil(soonest))
            while line.chat_at <= now:
                heappush(chats, line.chat())
            while chats and chats[0] <= now:
                heappop(chats)
                rule.heard(now)
            while pings and pings[0][0] <= now:
                heappop(pings)
            while pongs and pongs[0][0] <= now:
                at, number = heappop(pongs)
                rule.heard(now)
                rule.pong(sent_at[number], now, at - sent_at[number])
            unacknowledged = min((number for _, number in pings), default=None)
            line.unacknowledged_since = inf if unacknowledged is None else sent_at[unacknowledged]
            if rule.gives_up(now, line) or (now >= end and line.dead_at > now):
                break
            if rule.ping_due(now):
                outcome.pings += now < line.dead_at
                acknowledged, answered = line.ping(now)
                heappush(pings, (acknowledged, len(sent_at)))
                heappush(pongs, (answered, len(sent_at)))
                sent_at.append(now)
        if line.dead_at <= now:
            outcome.noticed[line.dead_at >= DEATH_SECONDS[1][0]].append(now - line.dead_at)
            break
        if now < end:
            outcome.false_closes += 1
            rule.ended()
            now = line.usable_at(now) + RETURN_SECONDS
    outcome.hours += min(now, line.dead_at) / 3600


def simulate(profile: Profile, rule_name: str) -> Outcome:
    """Run all lines of a kind under a rule."""
    outcome = Outcome(([], []))
    for number in range(LINES):
        seed = f"{profile.name} {number}"
        watch(Line(profile, seed), rule_name, seed, HOURS, outcome)
    for span in DEATH_SECONDS:
        for number in range(DEATHS):
            seed = f"{profile.name} dies {span} {number}"
            line = Line(profile, seed)
            line.dead_at = Random(seed).uniform(*span)
            watch(line, rule_name, seed, HOURS, outcome)
    return outcome


def cell(outcome: Outcome, pings: bool) -> str:
    """
    Cell of the table in docs/operations.md, "Dead lines", for a rule on lines of a kind.

    @param pings: True to add the number of pings: other rules send as many as the fixed one, or
        none.
    """
    early, late = outcome.noticed
    times = sorted(early + late)
    text = (
        f"{mean(early):.0f}, {mean(late):.0f} / {times[len(times) * 95 // 100]:.0f}"
        f" / {outcome.false_closes / outcome.hours * 100:.2f}"
    )
    return f"{text} / {outcome.pings / outcome.hours:.0f}" if pings else text


def main() -> None:
    """Print the table of docs/operations.md, "Dead lines"."""
    out = sys.stdout.write
    out("| line | " + " | ".join(RULES) + " |\n|" + "---|" * (len(RULES) + 1) + "\n")
    for profile in PROFILES:
        cells = [cell(simulate(profile, name), "alone" not in name) for name in RULES]
        out(f"| {profile.name} | " + " | ".join(cells) + " |\n")


if __name__ == "__main__":
    main()
