"""Addresses and the ssh configuration: where a device is and through which hosts the way goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.core.errors import ConfigError
from edgekit.transports._ssh_route import SshOptions, route


def a_route(address: str, config: Path, text: str, **options: object):
    config.write_text(text)
    return route(address, SshOptions(config=str(config), **options), "pi")


def test_the_first_of_proxy_command_and_proxy_jump_wins(tmp_path):
    config = tmp_path / "config"
    assert len(a_route("x", config, "Host x\n  ProxyCommand none\nHost *\n  ProxyJump gate\n")) == 1
    assert len(a_route("x", config, "Host x\n  ProxyJump none\nHost *\n  ProxyCommand nc %h %p\n")) == 1
    assert len(a_route("x", config, "Host x\n  ProxyJump gate\n", proxy_jump="none")) == 1
    assert [hop.host for hop in a_route("x", config, "Host x\n  ProxyJump u@a:1,b\nHost a\n  ProxyJump c\n")] == [
        "c",
        "a",
        "b",
        "x",
    ]
    with pytest.raises(ConfigError, match="'x' has a ProxyCommand"):
        a_route("x", config, "Host x\n  ProxyCommand nc %h %p\n")
    with pytest.raises(ConfigError, match="lead in a circle: a → b → a"):
        a_route("x", config, "Host x\n  ProxyJump a\nHost a\n  ProxyJump b\nHost b\n  ProxyJump a\n")


def test_the_address_wins_over_the_configuration(tmp_path):
    text = "Host x\n  HostName 10.0.0.9\n  Port 2200\n  User deploy\n  HostKeyAlias board\n"
    (hop,) = a_route("me@x:22", tmp_path / "config", text)
    assert (hop.user, hop.host, hop.port, hop.key_name) == ("me", "10.0.0.9", 22, "board")
    (hop,) = a_route("x", tmp_path / "config", text)
    assert hop.address == "deploy@10.0.0.9:2200"


@pytest.mark.parametrize(
    ("address", "user", "host", "port"),
    [
        ("pi@raspberry", "pi", "raspberry", 22),
        ("a@b@host.local:2222", "a@b", "host.local", 2222),
        ("u@[fe80::1%eth0]:2222", "u", "fe80::1%eth0", 2222),
        ("u@[::1]", "u", "::1", 22),
        ("ssh://u@h:7/", "u", "h", 7),
    ],
)
def test_addresses_are_taken_apart(tmp_path, address, user, host, port):
    (hop,) = a_route(address, tmp_path / "config", "")
    assert (hop.user, hop.host, hop.port) == (user, host, port)


@pytest.mark.parametrize("address", ["", "u@", "@host", "host:", "host:0", "host:70000", "u@::1", "a b", "h/x", "[::1"])
def test_an_address_of_another_form_is_refused(tmp_path, address):
    with pytest.raises(ConfigError, match=r"is not of the form \[user@\]host\[:port\]"):
        a_route(address, tmp_path / "config", "")


def test_an_ipv6_address_without_brackets_says_where_they_go(tmp_path):
    with pytest.raises(ConfigError, match="stands in brackets"):
        a_route("pi@fe80::1", tmp_path / "config", "")


def test_a_configuration_that_is_named_must_exist_and_make_sense(tmp_path):
    with pytest.raises(ConfigError, match="which does not exist"):
        route("x", SshOptions(config=str(tmp_path / "none")), "pi")
    with pytest.raises(ConfigError, match="the port 'many' is not a number"):
        a_route("x", tmp_path / "config", "Port many\n")
