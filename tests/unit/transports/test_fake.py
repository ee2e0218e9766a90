from __future__ import annotations

import json

import pytest

from edgekit.core.device import Device
from edgekit.core.errors import ConfigError, StableDeviceError, TransientDeviceError
from edgekit.transports.base import CommandResult, connect, registry
from edgekit.transports.fake import Call, FakeTransport, FaultyTransport


def a_device(**options):
    return Device(name="dummy", target="rpi4", transport="fake", options=options)


def echo(argv, stdin):
    return CommandResult(0, " ".join(argv).encode() + stdin, b"one\ntwo\n", 0.5)


def a_script(tmp_path, **content):
    path = tmp_path / "replies.json"
    path.write_text(json.dumps({"schema_version": 1, **content}))
    return str(path)


def test_the_registry_finds_it():
    assert registry.get("fake") is FakeTransport


def test_a_handler_answers_commands_and_calls_are_recorded(tmp_path):
    local = tmp_path / "model.bin"
    local.write_bytes(b"\0\xff")
    lines, sent = [], []
    with FakeTransport.scripted(a_device(), echo) as transport:
        result = transport.run(["cat", "-"], timeout=5, stdin=b"!", on_stderr=lines.append)
        transport.push(local, "store/./abc", sent.append)
        transport.pull("store/abc", tmp_path / "back" / "abc", max_bytes=2)
    assert result.stdout == b"cat -!"
    assert lines == ["one", "two"]
    assert sent == [2]
    assert (tmp_path / "back" / "abc").read_bytes() == b"\0\xff"
    assert transport.calls == [
        Call("run", argv=("cat", "-"), stdin=b"!"),
        Call("push", remote="store/./abc"),
        Call("pull", remote="store/abc"),
    ]


def test_a_pull_of_what_is_not_there_or_too_large_is_refused(tmp_path):
    with FakeTransport.scripted(a_device(), echo, files={"x": b"123"}) as transport:
        with pytest.raises(StableDeviceError, match="There is no 'y' on the device 'dummy'"):
            transport.pull("y", tmp_path / "y", max_bytes=10)
        with pytest.raises(StableDeviceError, match="at most 2 B"):
            transport.pull("x", tmp_path / "x", max_bytes=2)
    assert not list(tmp_path.iterdir())


def test_the_chosen_call_fails_and_the_next_one_works():
    with FakeTransport.scripted(a_device(), echo, fail_at=2) as transport:
        transport.run(["a"], timeout=5)
        with pytest.raises(TransientDeviceError, match="'dummy' failed on purpose in call 2"):
            transport.run(["b"], timeout=5)
        transport.run(["c"], timeout=5)


def test_the_fault_is_the_one_that_was_asked_for():
    error = StableDeviceError("the disk is gone")
    with FakeTransport.scripted(a_device(), echo, fail_at=1, error=error) as transport:
        with pytest.raises(StableDeviceError, match="the disk is gone"):
            transport.run(["a"], timeout=5)
    with connect(a_device(fail_at=1, error="stable")) as transport, pytest.raises(StableDeviceError):
        transport.pull("x", None, 1)


def test_an_answer_that_takes_longer_than_the_timeout_is_a_timeout():
    with FakeTransport.scripted(a_device(), echo) as transport:
        with pytest.raises(TransientDeviceError, match="did not end within 0.1 s"):
            transport.run(["a"], timeout=0.1)


def test_a_transport_that_is_not_open_says_so():
    transport = FakeTransport.scripted(a_device(), echo)
    with pytest.raises(TransientDeviceError, match="no open connection"):
        transport.run(["a"], timeout=1)


def test_a_script_answers_in_order_with_wildcards_and_brings_files(tmp_path):
    script = a_script(
        tmp_path,
        files={"etc/hostname": "pi\n"},
        replies=[
            {"argv": ["python3", "*/agent.py"], "stdout": "first", "returncode": 3},
            {"argv": ["python3", "*"], "stdout_base64": "AP8=", "times": 2},
        ],
    )
    with connect(a_device(script=script)) as transport:
        first = transport.run(["python3", "x/agent.py"], timeout=1)
        others = [transport.run(["python3", "x/agent.py"], timeout=1).stdout for _ in range(2)]
        transport.pull("etc/hostname", tmp_path / "hostname", 100)
        with pytest.raises(StableDeviceError, match=r"no reply left for \['python3', 'x/agent.py'\]"):
            transport.run(["python3", "x/agent.py"], timeout=1)
    assert (first.returncode, first.stdout) == (3, b"first")
    assert others == [b"\0\xff", b"\0\xff"]
    assert (tmp_path / "hostname").read_text() == "pi\n"


def test_a_wrong_script_is_refused_when_the_device_is_made(tmp_path):
    with pytest.raises(ConfigError, match="unknown key 'stdot'"):
        connect(a_device(script=a_script(tmp_path, replies=[{"argv": ["a"], "stdot": ""}])))
    with pytest.raises(ConfigError, match=r"replies.0.stdout_base64. is not base64"):
        connect(a_device(script=a_script(tmp_path, replies=[{"argv": ["a"], "stdout_base64": "x"}])))
    with pytest.raises(ConfigError, match="There is no file"):
        connect(a_device(script=str(tmp_path / "none.json")))


def test_without_a_script_a_command_says_how_to_give_one():
    with connect(a_device()) as transport, pytest.raises(StableDeviceError, match="script: replies.json"):
        transport.run(["a"], timeout=1)


def test_a_faulty_transport_cuts_before_or_after_the_call_it_is_told(tmp_path):
    local = tmp_path / "x"
    local.write_bytes(b"x")
    for when, arrived in (("before", []), ("after", ["b"])):
        inner = FakeTransport.scripted(a_device(), echo)
        with FaultyTransport(inner, fail_at=2, when=when) as transport:
            transport.run(["a"], timeout=1)
            with pytest.raises(TransientDeviceError, match=r"while pushing 'b' \(call 2\)"):
                transport.push(local, "b")
            assert list(inner.files) == arrived
            transport.push(local, "b")
            transport.pull("b", tmp_path / "back", 10)
        assert transport.count == 4
        assert not inner.is_open


def test_a_faulty_transport_raises_the_error_it_was_given():
    inner = FakeTransport.scripted(a_device(), echo)
    with FaultyTransport(inner, fail_at=1, error=StableDeviceError("full")) as transport:
        with pytest.raises(StableDeviceError, match="full"):
            transport.run(["a"], timeout=1)
    assert inner.calls == []
