"""Attacks on a real server, each beside a phone that must notice nothing of it."""

import os
import sys
from collections.abc import Callable
from math import ceil
from pathlib import Path

import msgspec
from twisted.internet.defer import ensureDeferred, gatherResults
from twisted.internet.task import LoopingCall
from twisted.internet.utils import getProcessOutputAndValue
from twisted.python import log
from twisted.trial.unittest import TestCase

from domaeka.testing import FakePhone
from tests.integration.support import (
    HOST,
    PATIENCE_SECONDS,
    ROOT,
    ServerProcess,
    cpu_seconds,
    free_port,
    reactor,
    sleep,
)
from tests.integration.test_tls import Authority
from tests.proofs.attacker import Target
from tests.proofs.attackers import BY_TLS, FLOODS, INTRUSIONS, Attack, greedy

#: How often the innocent phone says something, in seconds.
PAUSE = 0.01
#: How long 99 of 100 of its answers may take, in seconds of the server's processor time: so much
#: does it do for others before.
P99_SECONDS = 0.1
#: How long each may take beside one who asks for much: no turn of the reactor is longer either.
FAIR_SECONDS = 0.05
TRIES = 3
#: How much memory and how many open files an attack may leave behind.
LEFT_BYTES = 24 * 2**20
LEFT_FILES = 6
#: How often it is looked whether the server has forgotten an attack, and after how long again, in
#: seconds.
FORGET_LOOKS = 50
FORGET_PAUSE = 0.2
#: Nobody is slowed down at 127.0.0.0/24, so that all that is said there is heard.
ALL_IS_HEARD = (
    'limits.allow=["127.0.0.0/24"]',
    "limits.messages_per_second=0",
    "server.handshake_timeout=2",
    "server.max_frame_bytes=2097152",
    "server.max_text_chars=400000",
    "queue.message_ttl=5",
)


class Innocent:
    """A phone that chats on, whatever others do."""

    def __init__(self, phone: FakePhone, pid: int) -> None:
        """@param pid: the server's."""
        self.phone = phone
        self._pid = pid
        self._said: list[float] = []
        self._answered: list[float] = []
        self._asked = 0
        self._loop = LoopingCall(self._say)

    async def start(self) -> None:
        """Have it chat."""
        self.phone.when(self._look)
        self._loop.start(PAUSE)
        await self.phone.when_replies(100)

    async def stop(self) -> None:
        """It has said all, and been answered."""
        if self._loop.running:
            self._loop.stop()
        await self.answered()

    async def answered(self) -> None:
        """Wait until it has all its answers."""
        await self.phone.when_replies(len(self._said))

    def waits(self) -> list[float]:
        """
        What the server has done between each question since the last call and its answer, in
        seconds of processor time, sorted.
        """
        start, self._asked = self._asked, len(self._answered)
        asked = self._said[start : self._asked]
        return sorted(
            answered - said for answered, said in zip(self._answered[start:], asked, strict=True)
        )

    @property
    def content(self) -> bool:
        """Whether it never had to come back, was refused nothing, and got the right answers."""
        record = self.phone.record
        texts = [str(number) for number in range(len(record.replies))]
        return len(record.connects) == 1 and not record.errors and self.phone.texts() == texts

    def _say(self) -> None:
        self._said.append(cpu_seconds(self._pid))
        self.phone.say(f"# echo {len(self._said) - 1}")

    def _look(self) -> bool:
        """Note when answers came; never enough."""
        new = len(self.phone.replies) - len(self._answered)
        self._answered += [cpu_seconds(self._pid)] * new
        return False


def resident_bytes(pid: int) -> int:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def open_files(pid: int) -> int:
    """How many files and sockets a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


class AttackTests(TestCase):
    """Whatever is done to a server, a phone that is there already gets every answer in time."""

    timeout = 600

    async def serve(self, *settings: str) -> None:
        """A server with all kinds of ports, and a phone that chats."""
        self.tls_port, self.balanced_port = free_port(), free_port()
        directory = Path(self.mktemp()).absolute()
        directory.mkdir(parents=True)
        certificate = directory / "server.pem"
        Authority(directory, "authority").issue(certificate)
        settings = (
            f"tls.certificate={certificate}",
            f"tls.port={self.tls_port}",
            'bots.load=["tests.integration.picture_bot:bot"]',
            f'server.endpoints=["haproxy:tcp:{self.balanced_port}:interface={HOST}"]',
            *settings,
        )
        self.server = ServerProcess(self, *(part for key in settings for part in ("--set", key)))
        await self.server.start()
        self.collector = self.server.phone("00000000000000fe")
        self.innocent = Innocent(self.server.phone("00000000000000ff"), self.server.pid)
        self.addCleanup(self.innocent.stop)
        await self.innocent.start()

    async def held_bytes(self) -> int:
        """How much memory the server holds, its garbage collected."""
        self.collector.say("# collect")
        await self.collector.when_replies(len(self.collector.replies) + 1)
        return resident_bytes(self.server.pid)

    async def attack(self, attack: Attack, by_tls: bool) -> None:
        """Attack from another process, and wait for its end."""
        server = self.server
        secrets = server.secrets()
        target = Target(
            HOST,
            server.port,
            server.http_port,
            self.tls_port,
            self.balanced_port,
            secrets["secret_key"],
            secrets["salt"],
            self.innocent.phone.identity,
            by_tls,
        )
        output, errors, status = await getProcessOutputAndValue(
            sys.executable,
            ["-m", "tests.proofs.attackers", attack.__name__],
            env={**os.environ, "TARGET": msgspec.json.encode(target).decode()},
            path=str(ROOT),
        )
        self.assertEqual(status, 0, f"{attack.__name__}:\n{output.decode()}{errors.decode()}")

    async def suffer(
        self, *attacks: Attack, limit: float = P99_SECONDS, part: float = 0.99, by_tls: bool = False
    ) -> None:
        """
        Attack the server, and see what that has done to it and to the phone.

        @param limit: how long answers may take, in seconds of processor time.
        @param part: of how many that must be true, of 1.
        @param by_tls: whether attackers of the phones' port speak TLS.
        """
        names = ", ".join(attack.__name__ for attack in attacks) + " by TLS" * by_tls
        pid = self.server.pid
        slowest: list[float] = []
        left: list[int] = []
        # Where we are held up the server goes on, and that counts, too.  What it has allocated for
        # the first attack of a kind it may keep for the next: only what is never freed grows each
        # time.
        while not slowest or (
            len(slowest) < TRIES and (min(slowest) >= limit or min(left) >= LEFT_BYTES)
        ):
            memory, files = await self.held_bytes(), open_files(pid)
            self.innocent.waits()
            await gatherResults([ensureDeferred(self.attack(attack, by_tls)) for attack in attacks])
            await self.innocent.answered()
            waits = self.innocent.waits()
            slowest.append(waits[ceil(len(waits) * part) - 1])
            await self.until(lambda: open_files(pid) <= files + LEFT_FILES)  # noqa: B023
            left.append(await self.held_bytes() - memory)
            for _ in range(FORGET_LOOKS):
                if left[-1] < LEFT_BYTES:
                    break
                await sleep(FORGET_PAUSE)
                left[-1] = await self.held_bytes() - memory
            log.msg(
                f"{names}: {part:.0%} within {slowest[-1] * 1000:.0f} ms, all within "
                f"{waits[-1] * 1000:.0f} ms, of {len(waits)} answers; {left[-1] / 2**20:+.1f} MiB"
            )
        self.assertTrue(self.innocent.content, names)
        self.assertLess(min(left), LEFT_BYTES, names)
        self.assertEqual((await self.server.get("/health"))[0], 200, names)
        self.assertEqual(self.server.pid, pid, names)
        self.assertLess(min(slowest), limit, names)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something holds."""
        deadline = reactor.seconds() + PATIENCE_SECONDS
        while not condition():
            self.assertLess(reactor.seconds(), deadline, "waited too long")
            await sleep(FORGET_PAUSE)

    async def test_floods(self) -> None:
        """Floods from many addresses."""
        await self.serve("server.handshake_timeout=2")
        for attacks in FLOODS:
            await self.suffer(*attacks)

    async def test_intrusions(self) -> None:
        """All that a peer can say that is let in, some of it with the right key."""
        await self.serve(*ALL_IS_HEARD)
        for attacks in INTRUSIONS:
            await self.suffer(*attacks)

    async def test_by_tls(self) -> None:
        """The port for TLS bears no less."""
        await self.serve(*ALL_IS_HEARD)
        for attacks in BY_TLS:
            await self.suffer(*attacks, by_tls=True)

    async def test_fairness(self) -> None:
        """
        A phone that asks for much gets it without holding up another, nor the reactor for longer
        than 50 ms.
        """
        await self.serve('limits.allow=["127.0.0.0/8"]', "limits.messages_per_second=0")
        await self.suffer(greedy, limit=FAIR_SECONDS, part=1.0)
