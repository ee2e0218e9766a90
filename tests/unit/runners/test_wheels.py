from __future__ import annotations

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from edgekit.core.errors import ConfigError, StableDeviceError, TransientDeviceError
from edgekit.core.workload import RuntimeRequirement
from edgekit.runners import _wheels
from tests.unit.agent.kit import a_wheel

PI = {"hostname": "pi", "arch": "aarch64", "libc": "glibc 2.36", "python": "3.11.2", "implementation": "CPython"}
REQUIREMENT = RuntimeRequirement(("fast-runtime==2.3",), exclude=("Slow.Tool",), min_glibc="2.34")


def make_wheel(folder, name, version, tag, needs=()):
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {need}\n" for need in needs)
    files = {
        f"{name}/__init__.py": "",
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tag}\n",
        f"{info}/RECORD": "",
    }
    return a_wheel(folder / f"{name}-{version}-{tag}.whl", files)


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder of wheels that pip takes in the place of an index: pip itself is the real one."""
    folder = tmp_path / "index"
    folder.mkdir()
    for tag in ("cp311-cp311-manylinux_2_27_aarch64", "cp312-cp312-manylinux_2_27_aarch64"):
        make_wheel(folder, "fast_runtime", "2.3", tag, ("some-arrays", "slow-tool"))
    make_wheel(folder, "some_arrays", "1.0", "cp311-cp311-manylinux2014_aarch64")
    make_wheel(folder, "slow_tool", "1.0", "py3-none-any")
    monkeypatch.setenv("EDGEKIT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_the_wheels_of_the_devices_platform_are_taken_and_excluded_ones_dropped(index):
    found = _wheels.resolve(REQUIREMENT, PI)
    assert [wheel.name for wheel in found.wheels] == [
        "fast_runtime-2.3-cp311-cp311-manylinux_2_27_aarch64.whl",
        "some_arrays-1.0-cp311-cp311-manylinux2014_aarch64.whl",
    ]
    assert all(found.path(wheel).stat().st_size == wheel.bytes for wheel in found.wheels)
    assert found.unpacked > 0


def test_the_second_time_needs_neither_pip_nor_an_index(index, monkeypatch):
    first = _wheels.resolve(REQUIREMENT, PI)

    def refuse(*args):
        pytest.fail("pip was called")

    monkeypatch.setattr(_wheels, "_pip", refuse)
    assert _wheels.resolve(REQUIREMENT, PI | {"python": "3.11.9", "hostname": "other"}) == first


def test_a_lost_wheel_is_fetched_again(index):
    found = _wheels.resolve(REQUIREMENT, PI)
    found.path(found.wheels[0]).unlink()
    assert _wheels.resolve(REQUIREMENT, PI) == found
    assert found.path(found.wheels[0]).is_file()


def test_a_damaged_list_is_made_again(index, tmp_path):
    found = _wheels.resolve(REQUIREMENT, PI)
    for path in (tmp_path / "cache" / "wheels" / "locks").glob("*.json"):
        path.write_text("{")
    assert _wheels.resolve(REQUIREMENT, PI) == found


def test_two_at_a_time_get_the_same(index):
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: _wheels.resolve(REQUIREMENT, PI), range(2)))
    assert found[0] == found[1]
    assert len(list(found[0].folder.iterdir())) == 2


def test_no_wheel_for_the_device_says_which_there_are(index):
    with pytest.raises(StableDeviceError, match=r"no wheel of fast-runtime==2\.3 for CPython 3\.9") as caught:
        _wheels.resolve(REQUIREMENT, PI | {"python": "3.9.2"})
    assert "aarch64 (Python 3.11, 3.12)" in caught.value.message
    assert "`python:`" in caught.value.hint


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"libc": "glibc 2.31"}, "glibc 2.31, but fast-runtime==2.3 needs glibc 2.34"),
        ({"libc": None, "os": "Alpine Linux"}, "no glibc \\(Alpine Linux\\)"),
        ({"python": None}, "no CPython 3"),
        ({"implementation": "PyPy"}, "PyPy"),
        ({"arch": None}, "no CPython 3"),
    ],
)
def test_what_cannot_work_is_said_without_asking_pip(index, monkeypatch, facts, words):
    monkeypatch.setattr(_wheels, "_pip", lambda *args: pytest.fail("pip was called"))
    with pytest.raises(StableDeviceError, match=words):
        _wheels.resolve(REQUIREMENT, PI | facts)


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        ("/usr/bin/python3: No module named pip", ConfigError, "no pip"),
        (
            "Retrying … NewConnectionError\nERROR: No matching distribution found for fast-runtime==2.3",
            TransientDeviceError,
            "cannot fetch",
        ),
        ("ERROR: Invalid requirement: 'x y'", StableDeviceError, "Invalid requirement"),
    ],
)
def test_other_words_of_pip_are_told_apart(index, monkeypatch, said, kind, words):
    monkeypatch.setattr(_wheels, "_pip", lambda *args: subprocess.CompletedProcess([], 1, "", said))
    with pytest.raises(kind, match=words):
        _wheels.resolve(REQUIREMENT, PI)


def test_platform_tags_go_from_the_devices_glibc_down_under_all_their_names():
    tags = _wheels.Platform("x86_64", 31, 11).tags
    assert tags[0] == "manylinux_2_31_x86_64"
    assert {"manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"} <= set(tags)
    assert "manylinux_2_32_x86_64" not in tags
    assert "manylinux2010_aarch64" not in _wheels.Platform("aarch64", 31, 11).tags


def test_the_digest_follows_the_contents(index, tmp_path, monkeypatch):
    first = _wheels.resolve(REQUIREMENT, PI)
    monkeypatch.setenv("EDGEKIT_CACHE_DIR", str(tmp_path / "cache2"))
    assert _wheels.resolve(REQUIREMENT, PI).digest == first.digest
    wheel = next(index.glob("some_arrays*"))
    wheel.unlink()
    make_wheel(index, "some_arrays", "1.1", "cp311-cp311-manylinux2014_aarch64")
    monkeypatch.setenv("EDGEKIT_CACHE_DIR", str(tmp_path / "cache3"))
    assert _wheels.resolve(REQUIREMENT, PI).digest != first.digest
    locks = list((tmp_path / "cache3" / "wheels" / "locks").glob("*.json"))
    assert json.loads(locks[0].read_text())["schema_version"] == 1
