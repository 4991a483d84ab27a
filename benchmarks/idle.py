"""
What phones that only answer pings cost the server: C{python -m benchmarks.idle [CONNECTIONS]}.

Real connections, each pinged once in the 30 s that are measured.
"""

import sys
import time

from benchmarks.gateway import allow_many_files, bare, cpu_seconds, gateway
from benchmarks.load import answer_pings, chat_lines, make_phone

CONNECTIONS = 5000
INTERVAL_SECONDS = 30.0


def idle_cost(connections: int) -> float:
    """Which part of a core so many idle phones take."""
    settings = (
        "storage.chat_log=false",
        # All are pinged once in the time that is measured: the rhythm that they come to anyway.
        "ping.initial_delay_min=1",
        f"ping.initial_delay_max={INTERVAL_SECONDS + 1}",
        f"ping.interval={INTERVAL_SECONDS}",
    )
    with gateway(*settings) as (pid, port, key, salt):
        phones = [make_phone(port, number, key, salt) for number in range(connections)]
        answer_pings(phones, time.monotonic() + 3.0)  # the first ping, right after the handshake
        before = cpu_seconds(pid)
        pongs = answer_pings(phones, time.monotonic() + INTERVAL_SECONDS)
        cost = cpu_seconds(pid) - before
        if pongs < connections * 0.8:
            raise RuntimeError(f"only {pongs} of {connections} phones were pinged")
        for phone in phones:
            phone.sock.close()
    return cost / INTERVAL_SECONDS


def bare_cost(connections: int) -> float:
    """The same of bare Twisted, which reads as many lines in that time, and answers them."""
    with bare() as (pid, port, key, salt):
        phones = [make_phone(port, number, key, salt) for number in range(connections)]
        lines = [chat_lines(phone.writer, 1)[0] for phone in phones]
        time.sleep(3.0)
        before, began = cpu_seconds(pid), time.monotonic()
        for second in range(int(INTERVAL_SECONDS)):
            some = range(second, connections, int(INTERVAL_SECONDS))
            for number in some:
                phones[number].sock.sendall(lines[number])
            for number in some:
                phones[number].sock.recv(65536)
            time.sleep(max(0.0, began + second + 1 - time.monotonic()))
        cost = cpu_seconds(pid) - before
        for phone in phones:
            phone.sock.close()
    return cost / INTERVAL_SECONDS


def main() -> None:
    """Print it."""
    allow_many_files()
    connections = int(sys.argv[1]) if len(sys.argv) > 1 else CONNECTIONS
    cost, yardstick = idle_cost(connections), bare_cost(connections)
    print(
        f"{connections} idle phones, pinged every 30 s: {cost:.1%} of a core; bare Twisted, as "
        f"many lines: {yardstick:.1%}; ratio {cost / yardstick:.2f}"
    )


if __name__ == "__main__":
    main()
