"""What the limits of addresses cost at full size, in a process of its own."""

import json
import sys

from twisted.internet.utils import getProcessOutput
from twisted.trial.unittest import TestCase

from tests.integration.support import ROOT, reactor

MIB = 1_048_576
#: Tries half a million addresses once, at 5,000 a second, sweeping as the server does.
CROWD = """
import json, resource, time
from domaeka.config import LimitsSettings
from domaeka.policies.limits import Admission, AddressLimits

now = [1_790_000_000.0]
limits = AddressLimits(LimitsSettings(), lambda: now[0], lambda: now[0])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
turns, admitted = [], 0
for number in range(500_000):
    admitted += limits.admit(f"{number >> 16}.{number >> 8 & 255}.{number & 255}.1") == "admitted"
    now[0] += 0.0002
    if number % 50_000 == 49_999:
        steps = iter(limits.sweep())
        going = True
        while going:
            began = time.thread_time()
            going = next(steps, steps) is None
            turns.append(time.thread_time() - began)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([admitted, (after - before) * 1024, sorted(turns)[len(turns) * 9 // 10]]))
"""


class CrowdTests(TestCase):
    """Very many addresses."""

    timeout = 300

    async def test_half_a_million_addresses(self) -> None:
        """Each tried once, they take less than 64 MiB, and no step of a sweep holds up phones."""
        output = await getProcessOutput(
            sys.executable, ("-c", CROWD), {"PYTHONPATH": str(ROOT)}, reactor=reactor
        )
        admitted, grown_bytes, turn = json.loads(output)
        self.assertEqual(admitted, 500_000)
        self.assertLess(grown_bytes, 64 * MIB)
        self.assertLess(turn, 0.02)  # 1 ms where nothing else runs
