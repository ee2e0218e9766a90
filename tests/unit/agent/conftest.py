from __future__ import annotations

import pytest

from tests.unit.agent.kit import DeviceFolder


@pytest.fixture
def device(tmp_path):
    return DeviceFolder(tmp_path)
