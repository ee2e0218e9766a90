"""The guard against unseen skips, on small runs of pytest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SKIPPING = """
import pytest

@pytest.mark.parametrize("name", ["a", "b"])
def test_one(name):
    pytest.skip("no such board")

def test_other():
    assert True
"""


def run(folder: Path, allowed: str, *, ci: str, body: str = SKIPPING) -> subprocess.CompletedProcess[str]:
    (folder / "test_it.py").write_text(body)
    (folder / "allowed.txt").write_text(allowed)
    environment = {**os.environ, "CI": ci, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pytest", "-p", "tests.skips", "--allowed-skips", "allowed.txt", "-c", os.devnull]
    command += ["--rootdir", str(folder), "test_it.py"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_a_skip_that_is_not_listed_fails_a_run_on_the_build_server(tmp_path: Path) -> None:
    result = run(tmp_path, "test_it.py::test_one[[]a] | *\n", ci="true")
    assert result.returncode == 1
    assert "test_it.py::test_one[a] | no such board" in result.stdout


def test_a_skip_that_is_listed_with_its_reason_passes(tmp_path: Path) -> None:
    assert run(tmp_path, "# why\ntest_it.py::test_one[*] | no such *\n", ci="true").returncode == 0


def test_a_listed_test_that_skips_for_another_reason_fails(tmp_path: Path) -> None:
    assert run(tmp_path, "test_it.py::test_one[*] | needs a network\n", ci="1").returncode == 1


@pytest.mark.parametrize("ci", ["", "false"])
def test_on_a_persons_machine_any_test_may_skip(tmp_path: Path, ci: str) -> None:
    assert run(tmp_path, "", ci=ci).returncode == 0


def test_a_module_that_skips_whole_is_seen_too(tmp_path: Path) -> None:
    body = 'import pytest\npytest.importorskip("no_such_library")\n'
    result = run(tmp_path, "", ci="true", body=body)
    assert result.returncode == 1
    assert "no_such_library" in result.stdout


def test_an_expected_failure_is_no_skip(tmp_path: Path) -> None:
    body = "import pytest\n@pytest.mark.xfail\ndef test_it():\n    assert False\n"
    assert run(tmp_path, "", ci="true", body=body).returncode == 0


def test_a_line_without_a_reason_is_refused(tmp_path: Path) -> None:
    result = run(tmp_path, "test_it.py::test_one\n", ci="true")
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert "allowed.txt:1" in result.stderr
