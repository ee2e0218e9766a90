"""What every verb owes: help with an example, one JSON document, quiet when piped, the exit codes."""

from __future__ import annotations

import json
import signal

import pytest

from edgekit.core import errors
from tests.e2e.kit import PROJECT, write

# Typer asks click for names that click means to drop; imported here, in this process, that is an error.
quiet_import = pytest.mark.filterwarnings("ignore:.*Click 9:DeprecationWarning")

VERBS = [
    ("rollback",),
    ("init",),
    ("doctor",),
    ("targets",),
    ("devices", "list"),
    ("devices", "show"),
    ("devices", "probe"),
    ("devices", "trust"),
    ("compress",),
    ("sensitivity",),
    ("compile",),
    ("verify",),
    ("deploy",),
    ("bench",),
    ("compare",),
    ("report",),
    ("keys", "make"),
    ("keys", "show"),
    ("cache", "show"),
    ("cache", "clear"),
]


def test_the_list_of_verbs_here_is_the_command_lines_own(person):
    listing = person.run("--help").check().out
    shown = {line.split()[0] for line in listing.partition("Commands:")[2].splitlines() if line.strip()}
    assert shown == {verb[0] for verb in VERBS}


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_verb_has_help_with_a_worked_example(person, verb):
    said = person.run(*verb, "--help").check().out
    usage, _, examples = said.partition("Examples:")
    assert usage.startswith(f"Usage: edgekit {' '.join(verb)} ")
    assert f"edgekit {' '.join(verb)}" in examples
    assert all(option in usage for option in ("--json", "--quiet", "--verbose"))
    assert "[[" not in usage


def test_the_version_is_printed(person):
    from edgekit import __version__

    assert person.run("--version").check().out == f"edgekit {__version__}\n"


def test_a_completion_script_for_the_command_is_printed(person):
    # The shell is otherwise looked up among the parent processes, of which a build server has odd ones.
    said = person.run("--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1").check().out
    assert "complete -o default -F _edgekit_completion edgekit" in said


@pytest.mark.parametrize(
    "arguments",
    [("doctor",), ("targets",), ("targets", "rpi4"), ("devices", "list"), ("cache", "show"), ("report", "--list")],
    ids=" ".join,
)
def test_json_is_one_document_on_stdout_and_nothing_else(person, arguments):
    done = person.run(*arguments, "--json").check()
    assert done.json is not None
    assert done.err == ""


def test_an_error_is_a_document_too_and_is_said_on_stderr(person):
    done = person.run("targets", "rpi44", "--json").check(2)
    assert done.json["exit_code"] == 2
    assert done.json["error"]["type"] == "ConfigError"
    assert done.json["error"]["hint"] == "edgekit targets"
    assert done.err.startswith("error: There is no target 'rpi44'. Did you mean 'rpi4'?")


def test_a_reader_that_leaves_early_is_no_error(person):
    done = person.shell("edgekit targets | head -1; exit ${PIPESTATUS[0]}").check()
    assert done.out.startswith("target ")
    assert person.shell("edgekit targets --json | true; exit ${PIPESTATUS[0]}").check().err == ""
    assert person.shell("edgekit targets | true; exit ${PIPESTATUS[0]}").check().err == ""


def test_a_closed_stderr_does_not_stop_the_work(person):
    assert person.shell("edgekit devices probe local -v 2> >(true) --json").check().json["device"] == "local"


def test_piped_output_has_no_escapes(person):
    done = person.run("doctor", FORCE_COLOR="").check()
    assert "\x1b" not in done.out + done.err


def test_quiet_leaves_out_notes_and_verbose_adds_steps(person):
    loud = person.run("devices", "probe", "local", "-v").check()
    assert "probing local" in loud.err
    assert person.run("devices", "probe", "local", "--quiet").check().err == ""


@pytest.mark.parametrize(
    "arguments", [("deploy", "--bogus"), ("nothing",), ("verify",), ("deploy", "--threads", "0")], ids=" ".join
)
def test_a_wrong_command_line_is_exit_code_2(person, arguments):
    done = person.run(*arguments).check(2)
    assert "Error:" in done.err
    assert "edgekit" in done.err
    assert done.out == ""


def test_debug_shows_the_traceback_and_keeps_the_exit_code(person):
    done = person.run("targets", "rpi44", "--debug")
    assert done.code == 2
    assert "Traceback" in done.err


@quiet_import
@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (errors.ConfigError("x"), 2),
        (errors.MissingExtraError("x"), 2),
        (errors.UnsupportedModelError("x"), 2),
        (errors.PassError("x"), 3),
        (errors.BackendError("x"), 3),
        (errors.VerificationError("x"), 1),
        (errors.BudgetError("x"), 1),
        (errors.TransientDeviceError("x"), 3),
        (errors.StableDeviceError("x"), 3),
        (OSError(28, "No space left on device", "there"), 3),
        (ZeroDivisionError("x"), 3),
        (KeyboardInterrupt(), 130),
        (BrokenPipeError(), 0),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_what_is_raised_decides_the_exit_code(raised, code, capfd, monkeypatch):
    from edgekit.cli import common
    from edgekit.cli.screen import Screen

    def verb(screen: Screen) -> None:
        raise raised

    # A closed pipe makes the command point its standard output elsewhere; this process keeps its own.
    monkeypatch.setattr(common.os, "dup2", lambda *descriptors: None)
    assert common._guarded(verb, Screen(as_json=True), {}, debug=False) == code
    said = capfd.readouterr()
    assert "Traceback" not in said.err
    if code:
        assert json.loads(said.out)["exit_code"] == code


@quiet_import
def test_an_internal_error_asks_to_be_reported(capfd):
    from edgekit.cli import common
    from edgekit.cli.screen import Screen

    def verb(screen: Screen) -> None:
        raise RuntimeError("impossible")

    assert common._guarded(verb, Screen(), {}, debug=False) == 3
    said = capfd.readouterr().err
    assert "edgekit itself failed: RuntimeError: impossible" in said
    assert "--debug" in said


@quiet_import
def test_an_answer_left_out_at_a_question_is_an_interruption(capfd):
    import typer

    from edgekit.cli import common
    from edgekit.cli.screen import Screen

    def verb(screen: Screen) -> None:
        raise typer.Abort

    assert common._guarded(verb, Screen(), {}, debug=False) == 130


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_command_and_the_persons_code_in_it(person, number, code):
    sleeper = "import pathlib, time\ndef build():\n    pathlib.Path('here').touch()\n    time.sleep(600)\n"
    write(person.cwd, {"slow.py": sleeper})
    running = person.start("compile", "slow.py:build", "--target", "linux-x86")
    running.wait_for((person.cwd / "here").exists, "the factory")
    running.interrupt(number)
    running.done().check(code)
    assert person.processes() == []
    assert person.leftovers() == []


def test_environment_variables_stand_between_flags_and_the_file(person):
    write(person.cwd, PROJECT)
    assert "'rpi44'" in person.run("deploy", EDGEKIT_TARGETS="rpi44").check(2).err
    assert "'rpi55'" in person.run("deploy", "--target", "rpi55", EDGEKIT_TARGETS="rpi44").check(2).err
