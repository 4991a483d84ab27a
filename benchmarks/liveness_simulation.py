"""
How soon dead lines are noticed, and at what price, in virtual time.

Usage: C{python -m benchmarks.liveness_simulation}.  Lines of several kinds are run under several
rules, each rule on the very same lines; the same figures come out each time.
"""

import sys
from heapq import heappop, heappush
from math import ceil, inf
from random import Random
from statistics import mean
from typing import NamedTuple, Protocol

import msgspec

from domaeka.config import PingSettings
from domaeka.policies.liveness import Liveness, Ping
from domaeka.policies.patience import Patience

#: Lines of each kind, and how long each is watched while it lives, in hours.
LINES = 60
HOURS = 6.0
#: How many more die in their first 20 minutes, and how many later; when, in seconds.
DEATHS = 100
DEATH_SECONDS = ((60.0, 1200.0), (1200.0, 4800.0))
#: A phone is back so long after it has seen its connection close, in seconds.
RETURN_SECONDS = 4.0
#: Mean pause between two messages from a phone, in seconds.
CHAT_SECONDS = 180.0
#: First retransmission, beside the round trip, and longest pause between two, in seconds.
RETRANSMISSION_SECONDS = (0.2, 120.0)


class Profile(NamedTuple):
    """A kind of line; spans are drawn evenly, pauses between them are exponential."""

    name: str
    round_trip: float  # median, in seconds
    spread: float  # sigma of its logarithm
    outage_every: float = inf  # nothing passes, in seconds
    outage: tuple[float, float] = (0.0, 0.0)
    freeze_every: float = inf  # the kernel acknowledges, the app does not run
    freeze: tuple[float, float] = (0.0, 0.0)
    nat: float = inf  # a flow that is idle for longer is forgotten
    thinks: tuple[float, float] = (0.0, 0.0)  # how long the app takes to answer


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
    """The times at which something is the matter with a line."""

    def __init__(self, random: Random, every: float, length: tuple[float, float]) -> None:
        self._random = random
        self._every = every
        self._length = length
        self._spans: list[tuple[float, float]] = []
        self._end = 0.0

    def end_of(self, time: float) -> float:
        """When the span ends that C{time} is in; C{time} itself if it is in none."""
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
    One phone and its line: what is sent arrives, late or never.

    @ivar dead_at: from then on nothing passes any more.
    @ivar chat_at: when the phone next says something.
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
        """Whether a packet that is sent at C{time} arrives; one that does keeps the flow alive."""
        if time - self._last_packet > self._profile.nat:
            self.dead_at = min(self.dead_at, self._last_packet + self._profile.nat)
        if time >= self.dead_at or self._outages.end_of(time) > time:
            return False
        self._last_packet = max(self._last_packet, time)
        return True

    def usable_at(self, time: float) -> float:
        """From when on, at C{time} or later, the phone can connect."""
        return self._outages.end_of(self._freezes.end_of(time))

    def deliver(self, time: float, up: bool) -> float:
        """When what TCP is given at C{time} arrives: at once, or with a retransmission."""
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
        """@return: when the kernel's acknowledgement of a ping comes back, and when its pong."""
        arrived = self.deliver(time, up=False)
        if arrived == inf:
            return inf, inf
        trip = self._round_trip()
        thought = self._noise.uniform(*self._profile.thinks)
        answered = self._freezes.end_of(arrived) + trip / 2 + thought
        return arrived + trip, self._in_order(self.deliver(answered, up=True) + trip / 2)

    def chat(self) -> float:
        """The phone says something, at L{chat_at}.  @return: when it arrives."""
        said_at = self._freezes.end_of(self.chat_at)
        self.chat_at += self._chat.expovariate(1 / CHAT_SECONDS)
        return self._in_order(self.deliver(said_at, up=True))

    def _in_order(self, time: float) -> float:
        """When that arrives which left behind everything else."""
        self._arrived = max(self._arrived, time)
        return self._arrived

    def _round_trip(self) -> float:
        return self._profile.round_trip * self._noise.lognormvariate(0.0, self._profile.spread)


class Rule(Protocol):
    """What decides when to ping and when to give up; asked at whole seconds."""

    def heard(self, now: float) -> None:
        """Bytes came."""

    def pong(self, sent_at: float, now: float, round_trip: float) -> None:
        """The ping of a time was answered."""

    def ping_due(self, now: float) -> bool:
        """Whether to ping."""

    def gives_up(self, now: float, line: Line) -> bool:
        """Whether to close."""

    def due(self, line: Line) -> float:
        """Before this time, and unless something comes, there is nothing to ask."""

    def ended(self) -> None:
        """The connection was closed."""


class Ours:
    """The rule of the gateway, with its settings."""

    def __init__(
        self,
        settings: PingSettings,
        random: Random,
        now: float,
        device: Patience,
        pings_judge: bool = True,
        kernel_seconds: float = inf,
    ) -> None:
        """
        @param device: what its connections before have shown.
        @param pings_judge: whether unanswered pings end a connection.
        @param kernel_seconds: TCP_USER_TIMEOUT, which ends it, too.
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


class Present:
    """No pings: TCP keep-alive after 30 s, 9 times every 10 s; nothing read for 600 s."""

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


def make_rule(name: str, random: Random, now: float, device: Patience) -> Rule:
    """The rule of a new connection."""
    if name == "keep-alive alone":
        return Present(now)
    return Ours(
        PingSettings(adaptive="adaptive" in name),
        random,
        now,
        device,
        "alone" not in name,
        60.0 if "TCP_USER_TIMEOUT" in name else inf,
    )


RULES = (
    "adaptive and TCP_USER_TIMEOUT",
    "adaptive",
    "fixed 30/90",
    "TCP_USER_TIMEOUT alone",
    "keep-alive alone",
)


class Outcome(msgspec.Struct):
    """
    What a rule did to the lines of a kind.

    @ivar noticed: seconds from each death to its notice, of those that died early and late.
    """

    noticed: tuple[list[float], list[float]]
    hours: float = 0.0
    pings: int = 0
    false_closes: int = 0


def watch(line: Line, rule_name: str, seed: str, hours: float, outcome: Outcome) -> None:
    """Run a line until it has been dead and noticed, or for so many hours."""
    random = Random(seed)
    now = 0.0
    end = hours * 3600
    device = Patience()
    while now < min(end, line.dead_at):  # where it died while it was away nothing is to notice
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
    What docs/operations.md, "Dead lines", says of a rule on lines of a kind.

    @param pings: whether to say how many it sends: the others do as the fixed one, or send none.
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
