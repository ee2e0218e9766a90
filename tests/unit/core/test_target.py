from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path
from typing import Any

import pytest

from edgekit.backends.base import registry as backends
from edgekit.core.errors import ConfigError
from edgekit.core.registry import Registry
from edgekit.core.target import builtin_folder, find_targets, load_target, read_target
from edgekit.runners.base import registry as runners
from edgekit.transports.base import registry as transports

ROOT = Path(__file__).resolve().parents[3]
SHIPPED = sorted(find_targets())
NOT_BUILT_YET: dict[str, set[str]] = {
    "backends": set(),
    "transports": set(),
    "runners": set(),
}
PRECISIONS = {"int8", "float16", "float32"}
MINIMAL = """
schema_version: 1
name: board
summary: A board
cpu: {arch: aarch64}
os: {family: linux}
backends: [litert]
transports: [ssh]
"""


def test_the_classes_of_devices_that_the_readme_names_are_shipped() -> None:
    assert {"rpi4", "rpi5", "linux-x86", "intel-cpu", "android-arm64", "pixel8", "iphone15", "mac", "web"} <= set(
        SHIPPED
    )


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_target_can_be_read(name: str) -> None:
    target = load_target(name)
    assert target.summary
    assert set(target.precisions) <= PRECISIONS
    assert len(set(target.precisions)) == len(target.precisions)
    assert list(target.ram_mib) == sorted(set(target.ram_mib))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_target_names_plugins_that_exist_or_are_planned(name: str) -> None:
    target = load_target(name)
    known = {
        "backends": (target.backends, backends),
        "transports": (target.transports, transports),
        "runners": (target.runners, runners),
    }
    for kind, (named, registry) in known.items():
        assert len(set(named)) == len(named)
        assert set(named) <= set(registry.names()) | NOT_BUILT_YET[kind], kind


@pytest.mark.parametrize(
    ("kind", "registry"), [("backends", backends), ("transports", transports), ("runners", runners)]
)
def test_what_is_built_is_not_listed_as_planned(kind: str, registry: Registry[Any]) -> None:
    assert not NOT_BUILT_YET[kind] & set(registry.names())


@pytest.mark.parametrize("name", SHIPPED)
def test_a_linux_target_says_what_decides_whether_a_wheel_loads(name: str) -> None:
    target = load_target(name)
    if target.os.family == "linux":
        assert target.os.glibc is not None
        assert re.fullmatch(r"2\.\d+", target.os.glibc)
        assert target.os.python is not None
        assert re.fullmatch(r"3\.\d+", target.os.python)
        assert target.runtimes
    else:
        assert target.os.glibc is None


@pytest.mark.parametrize("name", SHIPPED)
def test_a_pinned_runtime_is_the_version_that_was_tested(name: str) -> None:
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    )
    for distribution, version in load_target(name).runtimes.items():
        assert pins[distribution] == version
        assert importlib.metadata.version(distribution) == version


@pytest.mark.parametrize("name", SHIPPED)
def test_every_source_that_a_shipped_target_cites_is_given(name: str) -> None:
    text = (builtin_folder() / f"{name}.yaml").read_text()
    comments = " ".join(line.partition("#")[2] for line in text.splitlines())
    head = text.partition("schema_version")[0]
    given = set(re.findall(r"\[([a-z0-9]+)\]", head))
    assert given
    assert set(re.findall(r"\[([a-z0-9]+)\]", comments)) <= given
    for source in given:
        assert f"[{source}]" in text.partition("schema_version")[2], f"[{source}] is cited nowhere"


def test_a_target_of_the_project_takes_the_place_of_a_shipped_one(tmp_path: Path) -> None:
    folder = tmp_path / "targets"
    folder.mkdir()
    (folder / "rpi4.yaml").write_text(MINIMAL.replace("board", "rpi4").replace("A rpi4", "Ours"))
    (folder / "board.yaml").write_text(MINIMAL)
    assert load_target("rpi4", tmp_path).cpu.cores is None
    assert load_target("board", tmp_path).runners == ("agent",)
    assert load_target("rpi5", tmp_path).cpu.cores == 4


def test_an_unknown_target_offers_the_nearest() -> None:
    with pytest.raises(ConfigError, match="There is no target 'rp4'. Did you mean 'rpi4'?"):
        load_target("rp4")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("name: board", "name: bord"), "board.yaml:3: the name 'bord' is not the file's stem 'board'"),
        (("backends: [litert]", "backends: []"), "board.yaml:7: a target needs at least one backend"),
        (("aarch64", "arm64"), "board.yaml:5: `arch` cannot be 'arm64'. Did you mean 'aarch64'?"),
        (("cpu:", "cpus:"), "board.yaml:5: unknown key 'cpus'. Did you mean 'cpu'?"),
        (("family: linux", "family: linux, api_level: high"), "board.yaml:6: `os.api_level`"),
    ],
)
def test_a_mistake_in_a_target_is_named_with_its_line(tmp_path: Path, change: tuple[str, str], words: str) -> None:
    path = tmp_path / "board.yaml"
    path.write_text(MINIMAL.replace(*change))
    with pytest.raises(ConfigError) as caught:
        read_target(path)
    assert words in caught.value.message
