"""Attacks on a real server, each beside a phone that must notice nothing of it."""

import os
import sys
from pathlib import Path

import msgspec
from twisted.internet.defer import ensureDeferred, gatherResults
from twisted.internet.task import LoopingCall
from twisted.internet.utils import getProcessOutputAndValue
from twisted.python import log
from twisted.trial.unittest import TestCase

from domaeka.testing import FakePhone
from tests.integration.attacker import Target
from tests.integration.attackers import BY_TLS, FLOODS, INTRUSIONS, Attack, greedy
from tests.integration.support import HOST, ROOT, ServerProcess, free_port, reactor, sleep
from tests.integration.test_tls import Authority

#: How often the innocent phone says something, in seconds.
PAUSE = 0.01
#: How long 99 of 100 of its answers may take, in seconds.
P99_SECONDS = 0.25
FAIR_P99_SECONDS = 0.05
TRIES = 3
#: How much memory and how many open files an attack may leave behind.
LEFT_BYTES = 24 * 2**20
LEFT_FILES = 6
#: Longest until the server has forgotten an attack, in seconds.
FORGET_SECONDS = 15.0
#: Nobody is slowed down at 127.0.0.0/24, so that all that is said there is heard.
ALL_IS_HEARD = (
    'limits.allow=["127.0.0.0/24"]',
    "limits.messages_per_second=0",
    "server.handshake_timeout=2",
    "server.max_frame_bytes=2097152",
    "server.max_text_chars=400000",
    "queue.message_ttl=5",
    'bots.load=["tests.integration.picture_bot:bot"]',
)


class Innocent:
    """A phone that chats on, whatever others do."""

    def __init__(self, phone: FakePhone) -> None:
        self.phone = phone
        self._said: list[float] = []
        self._asked = 0
        self._loop = LoopingCall(self._say)

    async def start(self) -> None:
        """Have it chat."""
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
        """How long it has waited for each answer since the last call, in seconds, sorted."""
        replies = self.phone.replies
        start, self._asked = self._asked, len(replies)
        return sorted(
            reply.time - said
            for reply, said in zip(replies[start:], self._said[start:], strict=False)
        )

    @property
    def content(self) -> bool:
        """Whether it never had to come back, was refused nothing, and got the right answers."""
        record = self.phone.record
        texts = [str(number) for number in range(len(record.replies))]
        return len(record.connects) == 1 and not record.errors and self.phone.texts() == texts

    def _say(self) -> None:
        self.phone.say(f"# echo {len(self._said)}")
        self._said.append(reactor.seconds())


def resident_bytes(pid: int) -> int:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def open_files(pid: int) -> int:
    """How many files and sockets a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


class AttackTests(TestCase):
    """Whatever is done to a server, a phone that is there already gets every answer in time."""

    timeout = 120

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
            f'server.endpoints=["haproxy:tcp:{self.balanced_port}:interface={HOST}"]',
            *settings,
        )
        self.server = ServerProcess(self, *(part for key in settings for part in ("--set", key)))
        await self.server.start()
        self.innocent = Innocent(self.server.phone("00000000000000ff"))
        self.addCleanup(self.innocent.stop)
        await self.innocent.start()

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
            ["-m", "tests.integration.attackers", attack.__name__],
            env={**os.environ, "TARGET": msgspec.json.encode(target).decode()},
            path=str(ROOT),
        )
        self.assertEqual(status, 0, f"{attack.__name__}:\n{output.decode()}{errors.decode()}")

    async def suffer(
        self, *attacks: Attack, p99_limit: float = P99_SECONDS, by_tls: bool = False
    ) -> None:
        """
        Attack the server, and see what that has done to it and to the phone.

        @param p99_limit: how long 99 of 100 answers may take, in seconds.
        @param by_tls: whether attackers of the phones' port speak TLS.
        """
        names = ", ".join(attack.__name__ for attack in attacks) + " by TLS" * by_tls
        pid = self.server.pid
        memory, files = resident_bytes(pid), open_files(pid)
        p99s: list[float] = []
        # What else runs on this machine holds the phone up, too: the best of some tries counts.
        while len(p99s) < TRIES and min(p99s, default=p99_limit) >= p99_limit:
            self.innocent.waits()
            start = reactor.seconds()
            await gatherResults([ensureDeferred(self.attack(attack, by_tls)) for attack in attacks])
            took = reactor.seconds() - start
            await self.innocent.answered()
            waits = self.innocent.waits()
            p99s.append(waits[len(waits) * 99 // 100])
        ended = reactor.seconds()
        while (
            resident_bytes(pid) >= memory + LEFT_BYTES or open_files(pid) > files + LEFT_FILES
        ) and reactor.seconds() < ended + FORGET_SECONDS:
            await sleep(0.1)
        left, left_files = resident_bytes(pid) - memory, open_files(pid) - files
        log.msg(
            f"{names}: {took:.1f} s, p99 {min(p99s) * 1000:.0f} ms of {len(waits)} answers, "
            f"{left / 2**20:+.1f} MiB and {left_files:+d} files after "
            f"{reactor.seconds() - ended:.1f} s"
        )
        self.assertTrue(self.innocent.content, names)
        self.assertLess(left, LEFT_BYTES, names)
        self.assertLessEqual(left_files, LEFT_FILES, names)
        self.assertEqual((await self.server.get("/health"))[0], 200, names)
        self.assertEqual(self.server.pid, pid, names)
        self.assertLess(min(p99s), p99_limit, names)

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
        for _ in range(TRIES):
            before = await self.lags()
            await self.suffer(greedy, p99_limit=FAIR_P99_SECONDS)
            after = await self.lags()
            long_turns = [(new - old) for old, new in zip(before, after, strict=True)]
            if long_turns[0] == long_turns[1]:
                return
        self.fail(f"turns, and those of 50 ms at most: {long_turns}")

    async def lags(self) -> tuple[int, int]:
        """How many turns of the reactor were looked at, and how many took 50 ms at most."""
        lines = (await self.server.get("/metrics"))[1].decode().splitlines()
        name = "domaeka_reactor_lag_seconds_bucket"
        found = dict(line.rsplit(" ", 1) for line in lines if line.startswith(name))
        return int(float(found[name + '{le="+Inf"}'])), int(float(found[name + '{le="0.05"}']))
