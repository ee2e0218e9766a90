from __future__ import annotations

from types import SimpleNamespace

import pytest

from edgekit.core.errors import VerificationError
from edgekit.flow.fallback import fallback_on_device, fallback_on_host, require_delegated
from edgekit.flow.verify import TOLERANCES, HostRun, Verification


def built(facts):
    host = None if facts is None else HostRun(Verification("float32", TOLERANCES["float32"], {}, facts), {})
    return SimpleNamespace(artifact=SimpleNamespace(manifest=SimpleNamespace(name="net", backend="litert")), host=host)


def test_operators_that_fell_back_stop_the_build_by_name():
    one = built({"not_delegated": {"WHILE": 1, "CUMSUM": 3}})
    with pytest.raises(VerificationError, match="3 × CUMSUM, 1 × WHILE"):
        require_delegated(one)


def test_an_artifact_that_is_delegated_whole_passes():
    whole = built({"not_delegated": {}})
    assert fallback_on_host(whole) == {}
    require_delegated(whole)


@pytest.mark.parametrize(
    "facts, words", [(None, "was not run here"), ({"delegate": None}, "runtime of litert does not tell")]
)
def test_not_knowing_is_no_pass(facts, words):
    assert fallback_on_host(built(facts)) is None
    with pytest.raises(VerificationError, match=words):
        require_delegated(built(facts))


def test_a_devices_own_run_is_read_from_its_measurements():
    result = SimpleNamespace(
        measurements=(SimpleNamespace(metadata={}), SimpleNamespace(metadata={"not_delegated": {"TOPK_V2": 1}}))
    )
    assert fallback_on_device(result) == {"TOPK_V2": 1}
