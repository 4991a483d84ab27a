"""Cost of a phone that reads nothing, for server and others: C{python -m benchmarks.slow}."""

import os
import socket
import time
from itertools import cycle, islice

from benchmarks.load import Phone, chat_lines, exchange, hang_up, make_phone
from benchmarks.servers import gateway, resident_bytes
from domaeka import Bot, Context
from domaeka.config import QueueSettings
from domaeka.wire import Said

COMMAND = "# picture"
PICTURE_BYTES = 9 * 1024 * 1024
PHONES = 20
MESSAGES = 2000
MIB = 1024 * 1024

bot = Bot("pictures")


@bot.command(COMMAND)
async def picture(ctx: Context) -> None:
    """A picture, different each time."""
    await ctx.reply_media(os.urandom(PICTURE_BYTES), 1)


def p99(phones: list[Phone]) -> float:
    """99th percentile of the latency, in seconds; the phones ask one after the other."""
    took = []
    lines = [iter(chat_lines(phone.writer, MESSAGES // len(phones) + 1)) for phone in phones]
    for number, phone in islice(cycle(enumerate(phones)), MESSAGES):
        started = time.perf_counter()
        phone.sock.sendall(next(lines[number]))
        while b'"messageResponse"' not in phone.sock.recv(262_144):
            pass
        took.append(time.perf_counter() - started)
    return sorted(took)[len(took) * 99 // 100]


def ask_for_picture(phone: Phone) -> None:
    """Let a phone that reads nothing ask for a picture."""
    said = Said(room="방", sender="나", text=COMMAND, channel_id="1")
    phone.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    phone.sock.sendall(phone.writer.chat(said))


def main() -> None:
    """Print the figures."""
    settings = ("storage.chat_log=false", 'bots.load=["benchmarks.slow:bot"]')
    with gateway(*settings) as (pid, port, key, salt):
        phones = [make_phone(port, number, key, salt) for number in range(PHONES)]
        exchange(phones, 1, 100)  # warm
        alone = p99(phones)
        slow = make_phone(port, PHONES, key, salt)
        before = resident_bytes(pid)
        ask_for_picture(slow)
        time.sleep(0.5)
        beside = p99(phones)
        held = resident_bytes(pid) - before
        hang_up([*phones, slow])
    bound = QueueSettings().max_bytes / MIB + 1
    print(f"a phone that reads nothing, for which a picture of {PICTURE_BYTES // MIB} MiB waits")
    print(f"  the server's memory for it: {held / MIB:.1f} MiB (target: {bound:.0f} at most)")
    print(
        f"  others' answers, 99 % within: {beside * 1000:.2f} ms, without it {alone * 1000:.2f} ms"
        " (target: the same)"
    )


if __name__ == "__main__":
    main()
