"""Which runtime a device gets where the usual one has no wheel for it: pip is the real one, its index a folder."""

from __future__ import annotations

import pytest

from edgekit.core.errors import StableDeviceError
from edgekit.core.workload import OlderRuntime, RuntimeRequirement
from edgekit.runners._runtime import choose
from tests.unit.runners.test_wheels import make_wheel

OLD = {"hostname": "pi", "arch": "armv7l", "libc": "glibc 2.36", "python": "3.11.2", "implementation": "CPython"}
NEW = OLD | {"arch": "aarch64"}
ARRAYS = {"arrays": ("1.23.2", "2")}


def requirement(**lacks: tuple[str, ...]) -> RuntimeRequirement:
    return RuntimeRequirement(
        ("fast-runtime==2.3",),
        min_glibc="2.34",
        older=tuple(
            OlderRuntime(f"slow-runtime=={version}", ARRAYS, lacks.get(f"v{version}", ())) for version in ("14", "13")
        ),
    )


@pytest.fixture
def index(tmp_path, monkeypatch):
    folder = tmp_path / "index"
    folder.mkdir()
    make_wheel(folder, "fast_runtime", "2.3", "cp311-cp311-manylinux_2_27_aarch64")
    make_wheel(folder, "slow_runtime", "14", "cp311-cp311-manylinux_2_34_armv7l", ("arrays>=1.23.2",))
    make_wheel(folder, "slow_runtime", "13", "cp39-cp39-manylinux2014_armv7l", ("arrays>=1.21",))
    monkeypatch.setenv("EDGEKIT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def names(chosen):
    return [wheel.name.partition("-cp")[0] for wheel in chosen.wheels.wheels]


def test_a_device_that_the_usual_runtime_fits_gets_it_and_nothing_is_said(index):
    chosen = choose(requirement(v14=("ADD version 9",)), NEW)
    assert (names(chosen), chosen.note) == (["fast_runtime-2.3"], "")


def test_an_earlier_runtime_is_taken_where_only_that_fits(index):
    make_wheel(index, "arrays", "1.24.0", "cp311-cp311-manylinux2014_armv7l")
    make_wheel(index, "arrays", "2.0.0", "cp311-cp311-manylinux2014_armv7l")
    chosen = choose(requirement(), OLD)
    assert names(chosen) == ["arrays-1.24.0", "slow_runtime-14"]
    assert chosen.note.startswith("slow-runtime==14, because: There is no wheel of fast-runtime==2.3")


def test_the_devices_own_arrays_do_where_there_is_no_wheel_of_them(index):
    chosen = choose(requirement(), OLD | {"arrays": "1.24.2"})
    assert names(chosen) == ["slow_runtime-14"]
    assert "slow-runtime==14 with the device's own arrays 1.24.2" in chosen.note


@pytest.mark.parametrize(
    ("there", "words"),
    [(None, "has no arrays"), ("1.19.5", "has arrays 1.19.5"), ("2.0.1", "has arrays 2.0.1")],
)
def test_arrays_that_do_not_fit_are_named_with_what_would(index, there, words):
    with pytest.raises(StableDeviceError, match=r"needs arrays from 1\.23\.2 to below 2") as caught:
        choose(requirement(), OLD | {"arrays": there})
    assert words in caught.value.message
    assert "no wheel of fast-runtime==2.3" in caught.value.message
    assert "apt install python3-numpy" in caught.value.hint
    assert "piwheels" in caught.value.hint


def test_what_the_earlier_runtime_lacks_is_named_and_nothing_is_sent(index):
    lacks = ("CONV_2D version 8 (it has versions up to 7)", "EXP version 3 (it has versions up to 2)")
    with pytest.raises(StableDeviceError, match="can only have slow-runtime==14, which cannot run") as caught:
        choose(requirement(v14=lacks), OLD | {"arrays": "1.24.2"})
    assert "; ".join(lacks) in caught.value.message
    assert "Nothing was sent" in caught.value.message
    assert "64-bit" in caught.value.hint


def test_a_device_that_none_fits_is_told_of_the_usual_one(index):
    with pytest.raises(StableDeviceError, match=r"no wheel of fast-runtime==2\.3 for CPython 3\.12"):
        choose(requirement(), OLD | {"python": "3.12.1", "arrays": "1.24.2"})


def test_a_system_too_old_for_the_usual_one_gets_the_earlier_one(index):
    make_wheel(index, "slow_runtime", "13", "cp311-cp311-manylinux2014_aarch64")
    chosen = choose(requirement(), NEW | {"libc": "glibc 2.31", "arrays": "1.24.2"})
    assert names(chosen) == ["slow_runtime-13"]
    assert "glibc 2.31, but fast-runtime==2.3 needs glibc 2.34" in chosen.note
