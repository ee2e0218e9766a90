"""What goes over SFTP, as OpenSSH's own server has logged it."""

from __future__ import annotations

import re

import pytest

from edgekit.transports.base import connect

pytestmark = pytest.mark.usefixtures("own_home")


@pytest.fixture
def logged(sshd):
    """Lets the server log its SFTP requests, with more arguments for it; gives what it has logged."""
    log = sshd.folder / "sftp.log"

    def start(*arguments):
        server = f'exec "$SSH_ORIGINAL_COMMAND" -e -l DEBUG3 {" ".join(arguments)} 2>>{log}'
        sshd.wrap(f'case "$SSH_ORIGINAL_COMMAND" in */sftp-server) {server} ;; esac')
        return log

    return start


def requests(log):
    return re.findall(r"request \d+: (fsync|posix-rename|rename|close)\b", log.read_text())


def test_a_file_is_on_the_devices_disk_before_it_has_its_name(sshd, logged, tmp_path):
    log = logged()
    (tmp_path / "x").write_bytes(b"x" * 100_000)
    with connect(sshd.device()) as transport:
        transport.push(tmp_path / "x", "folder/x")
    found = requests(log)
    assert found.index("fsync") < found.index("close") < found.index("posix-rename")


def test_a_server_that_does_not_do_that_gets_files_all_the_same(sshd, logged, tmp_path):
    log = logged("-P", "fsync")
    (tmp_path / "x").write_bytes(b"x" * 100_000)
    with connect(sshd.device()) as transport:
        transport.push(tmp_path / "x", "x")
    assert "fsync" not in requests(log)
    assert (sshd.home / "x").read_bytes() == b"x" * 100_000
