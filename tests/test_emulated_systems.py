"""What is said where an emulated Arm system cannot be built; on any machine, as root or not."""

from __future__ import annotations

import os
import shutil
import sys

import pytest

from tests.devices import binfmt, rootfs
from tests.devices.rootfs import UnavailableError


@pytest.fixture
def able(monkeypatch, tmp_path):
    """A machine that has everything."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(binfmt, "register", lambda arch: None)
    monkeypatch.setenv(rootfs.CACHE_VARIABLE, str(tmp_path))


def test_without_root_that_is_said(able, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UnavailableError, match="need root"):
        rootfs.ensure("arm64")


@pytest.mark.parametrize(("name", "missing"), [("arm64", "qemu-aarch64-static"), ("armhf", "debootstrap")])
def test_a_missing_tool_is_named_with_how_to_install_it(able, monkeypatch, name, missing):
    monkeypatch.setattr(shutil, "which", lambda tool: None if tool == missing else f"/usr/bin/{tool}")
    with pytest.raises(UnavailableError, match=f"need {missing}, .*install-system-packages"):
        rootfs.ensure(name)


def test_a_kernel_that_takes_no_interpreter_is_said(able, monkeypatch):
    def refuse(arch):
        raise PermissionError("permission denied")

    monkeypatch.setattr(binfmt, "register", refuse)
    with pytest.raises(UnavailableError, match=r"no interpreter for arm64 programs here \(binfmt_misc\): permission"):
        rootfs.ensure("arm64")


def test_an_unknown_system_is_refused_with_those_there_are(able):
    with pytest.raises(UnavailableError, match=f"Known: {', '.join(rootfs.RECIPES)}"):
        rootfs.ensure("riscv64")


def test_a_system_that_is_there_is_not_built_again(able, monkeypatch):
    folder = rootfs.cache_folder() / f"bookworm-arm64-{rootfs.RECIPES['arm64'].key}"
    folder.mkdir()
    monkeypatch.setattr(rootfs, "_build", lambda *args: pytest.fail("built again"))
    assert rootfs.ensure("arm64") == folder


def test_a_build_that_fails_leaves_nothing_and_one_that_was_killed_is_cleared_away(able, monkeypatch):
    killed = rootfs.cache_folder() / ".bookworm-arm64-0123456789ab-x.part"
    older = rootfs.cache_folder() / "bookworm-arm64-0123456789ab"
    for folder in (killed, older):
        folder.mkdir()

    def fail(recipe, tree, say):
        tree.mkdir()
        raise UnavailableError("no network")

    monkeypatch.setattr(rootfs, "_build", fail)
    with pytest.raises(UnavailableError, match="no network"):
        rootfs.ensure("arm64")
    assert [path for path in rootfs.cache_folder().iterdir() if path.is_dir()] == []


def test_another_recipe_has_another_key():
    assert len({recipe.key for recipe in rootfs.RECIPES.values()}) == len(rootfs.RECIPES)


def test_the_kernel_knows_programs_by_machine_and_class():
    magic = binfmt.INTERPRETERS["arm64"].magic
    assert magic.startswith(r"\x7fELF\x02\x01\x01")
    assert magic.endswith(r"\xb7\x00")
    assert binfmt.INTERPRETERS["armhf"].magic.startswith(r"\x7fELF\x01")
