"""
Cost of a scrape of C{/metrics}, and the delay for others: C{python -m benchmarks.scrape}.

Two hundred phones are connected, and each command of a bot has its series.
"""

import http.client
import time
from statistics import median
from typing import Final

from benchmarks.load import Phone, answer_pings, hang_up, make_phone
from benchmarks.servers import allow_many_files, free_port, gateway
from domaeka.wire import Delivered, Said, read_server_frame

PHONES: Final = 200
SCRAPES: Final = 200
#: Pause between scrapes, in seconds.
PAUSE_SECONDS: Final = 0.02
#: Command to which C{benchmarks/lag_bot.py} answers with the longest turn.
COMMAND: Final = "# turns"


def longest_turn(phone: Phone) -> float:
    """The longest turn of the server's reactor since the last call, in seconds."""
    phone.sock.sendall(phone.writer.chat(Said(room="방", sender="김하늘", text=COMMAND)))
    while True:
        *lines, phone.rest = (phone.rest + phone.sock.recv(65536)).split(b"\n")
        for line in lines:
            frame = read_server_frame(line)
            if isinstance(frame, Delivered) and isinstance(frame.reply.content, str):
                return float(frame.reply.content)


def scrape(port: int) -> tuple[list[float], bytes]:
    """@return: the duration of each scrape, in seconds; and the last response."""
    line = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    times = []
    for _ in range(SCRAPES):
        started = time.perf_counter()
        line.request("GET", "/metrics")
        text = line.getresponse().read()
        times.append(time.perf_counter() - started)
        time.sleep(PAUSE_SECONDS)
    line.close()
    return times, text


def main() -> None:
    """Print the figures."""
    allow_many_files()
    http_port = free_port()
    bots = 'bots.load=["benchmarks.lag_bot:bot"]'
    with gateway(bots, http_port=http_port) as (_, port, key, salt):
        phones = [make_phone(port, number, key, salt) for number in range(PHONES)]
        answer_pings(phones, time.monotonic() + 3.0)
        longest_turn(phones[0])
        time.sleep(SCRAPES * PAUSE_SECONDS)
        idle = longest_turn(phones[0])
        times, text = scrape(http_port)
        longest = longest_turn(phones[0])
        hang_up(phones)
    series = sum(not line.startswith(b"#") for line in text.splitlines())
    print(
        f"a scrape of {series} series, {PHONES} phones: median {median(times) * 1e3:.1f} ms, "
        f"longest {max(times) * 1e3:.1f} ms; longest turn of the reactor {longest * 1e3:.1f} ms of "
        f"CPU (without scrapes {idle * 1e3:.1f})"
    )


if __name__ == "__main__":
    main()
