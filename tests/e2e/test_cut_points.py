"""The number of cut points in the README is one that the fault tests reach."""

from __future__ import annotations

import re

from tests.e2e import cut_points
from tests.e2e.kit import ROOT


def test_the_readme_states_no_more_cut_points_than_are_tried():
    (stated,) = re.findall(r"(\d+) cut points", (ROOT / "README.md").read_text())
    assert 200 <= int(stated) <= cut_points.LEAST
