"""The alert rules, where they must agree with the code and the documents."""

import re
from pathlib import Path

from prometheus_client import generate_latest
from twisted.trial.unittest import SynchronousTestCase

from domaeka.metrics import Metrics

ROOT = Path(__file__).parent.parent
RULES = (ROOT / "etc/prometheus/domaeka.rules.yml").read_text()
TESTS = (ROOT / "etc/prometheus/domaeka.test.yml").read_text()
ALERTS = re.findall(r"- alert: (\w+)", RULES)


class RulesTests(SynchronousTestCase):
    """Tests for C{etc/prometheus}.  What they say is tried by promtool."""

    def test_metrics_exist(self) -> None:
        """Rules ask only for what the server tells."""
        told = set(re.findall(r"# TYPE (\w+)", generate_latest(Metrics().registry).decode()))
        asked = re.findall(r"\b(domaeka_\w+)", RULES)
        names = {re.sub(r"_(bucket|count|sum)$", "", name) for name in asked}
        self.assertEqual(names - told, set())

    def test_explained(self) -> None:
        """Each alert has a paragraph, and no paragraph is left of one that is gone."""
        page = (ROOT / "docs/operations.md").read_text()
        self.assertEqual(re.findall(r"- \*\*(Domaeka\w+)\*\*", page), ALERTS)

    def test_tried(self) -> None:
        """Each alert is seen to fire in a test."""
        fired = re.findall(r"alertname: (\w+)\n.*\n +exp_alerts:\n", TESTS)
        self.assertEqual(set(fired), set(ALERTS))
