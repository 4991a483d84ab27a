"""
All tests.

Damaged input in quantity is for C{tests.proofs.test_fuzz}; here few of each kind will do.
"""

from hypothesis import HealthCheck, settings
from twisted.trial.unittest import SynchronousTestCase

# None of them judges time: a machine may be busy with something else.
settings.register_profile(
    "domaeka",
    max_examples=50,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("domaeka")


def forget_after(case: SynchronousTestCase) -> None:
    """
    Drop what a test hangs on its case from here on, once the test has ended.

    Trial keeps every case to the end; the collector of garbage would look at all of it again and
    again.
    """
    kept = set(vars(case))

    def forget() -> None:
        for name in vars(case).keys() - kept:
            delattr(case, name)

    case.addCleanup(forget)
