"""
What is proven in minutes rather than seconds: attacks, kills, a clock that is set, damaged input in
quantity, faults of the network, the benchmarks.  C{make proofs} runs all of it in a short form,
which CI does for each change; C{make proofs LONG=1} the long one, by hand.
"""

import os
from typing import Final

#: Whether it is the long form.
LONG: Final = bool(os.environ.get("LONG"))
