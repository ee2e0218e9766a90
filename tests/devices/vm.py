"""A virtual Raspberry Pi: QEMU's system emulation with a kernel, a disk and 1 GiB of memory of its own.

Unlike a chroot it can run out of memory, reboot, lose its power and start with a wrong clock. Its memory figures are
those of a real kernel; its speed is the emulator's and says nothing of a board's.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgekit.core.device import Device
from tests.devices import rootfs, vm_boot
from tests.devices.sshd import LoginKey, eventually, make_key

MEMORY_MIB = 1024
CORES = 2
CPU = "cortex-a72"
DISK_GIB = 2
TOOLS: Mapping[str, str] = {
    "qemu-system-aarch64": "qemu-system-arm",
    "qemu-img": "qemu-utils",
    "mkfs.ext4": "e2fsprogs",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
}
"""Programs, and Debian's packages of them; those of `rootfs` come on top."""
_DISK_RECIPE = "1"
_BOOT_SECONDS = 180.0
_COMMAND_SECONDS = 120.0
_GREETING_SECONDS = 30.0

_INITTAB = """\
::sysinit:/vm/start
::respawn:/usr/sbin/sshd -D -e -f /vm/sshd_config
::ctrlaltdel:/vm/busybox reboot
::shutdown:/vm/busybox umount -a -r
"""
_START = """\
#!/vm/busybox sh
# A root file system that was not left in order is repaired by its journal when it is mounted.
/vm/busybox mount -t proc proc /proc
/vm/busybox mount -t sysfs sys /sys
/vm/busybox mount -t devtmpfs dev /dev 2>/dev/null
/vm/busybox mkdir -p /dev/pts
/vm/busybox mount -t devpts devpts /dev/pts
/vm/busybox mount -t tmpfs tmpfs /run
/vm/busybox mkdir -p /run/sshd
/vm/busybox hostname virtual-pi
/vm/busybox ip link set lo up
/vm/busybox ip link set eth0 up
/vm/busybox ip address add 10.0.2.15/24 dev eth0
/vm/busybox ip route add default via 10.0.2.2
"""
_SSHD_CONFIG = """\
HostKey /vm/host_key
AuthorizedKeysFile /vm/authorized_keys
PidFile none
UsePAM no
StrictModes no
PermitRootLogin yes
PasswordAuthentication no
UseDNS no
MaxStartups 100
Subsystem sftp internal-sftp
"""


def require_tools() -> None:
    """Check that a virtual machine can be built and run here.

    Raises:
        rootfs.UnavailableError: Not; names the packages that lack.
    """
    lacking = {package for program, package in TOOLS.items() if _found(program) is None}
    if lacking:
        raise rootfs.UnavailableError(
            f"The virtual Raspberry Pi needs programs that are not here: apt-get install {' '.join(sorted(lacking))}"
        )
    rootfs.require_tools("arm64")


def disk() -> Path:
    """An ext4 file system with the Debian of `rootfs`, to be used read-only: machines write to overlays of it.

    Raises:
        rootfs.UnavailableError: It cannot be built here.
    """
    tree = rootfs.ensure("arm64")

    def make(folder: Path) -> None:
        image = folder / "disk.ext4"
        with image.open("wb") as stream:
            stream.truncate(DISK_GIB << 30)
        argv = [_tool("mkfs.ext4"), "-q", "-F", "-L", "virtual-pi", "-d", str(tree), str(image)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise rootfs.UnavailableError(f"mkfs.ext4 cannot make the virtual Pi's disk: {done.stderr.strip()[-500:]}")

    return vm_boot.kept(f"vm-disk-{tree.name.rpartition('-')[2]}-{_DISK_RECIPE}", make) / "disk.ext4"


@dataclass(frozen=True)
class Command:
    """A command that ended on the machine."""

    code: int
    out: str
    err: str

    def check(self) -> str:
        """What it printed; it must have ended with 0."""
        assert self.code == 0, f"exit status {self.code}\n{self.out}\n{self.err}"
        return self.out


class VirtualPi:
    """One machine with a disk that lasts over its restarts. Use it as a context manager.

    Args:
        folder: An empty folder for everything it needs.
        key: The key that may log in as root.
        clock: What its hardware clock says when it is switched on, as QEMU's `-rtc base=` takes it.

    Raises:
        rootfs.UnavailableError: On `start`: this host cannot run it.
    """

    def __init__(self, folder: Path, key: LoginKey, clock: str = "utc") -> None:
        self.folder, self.key, self.clock = folder, key, clock
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> VirtualPi:
        self.start()
        return self

    def __exit__(self, *details: object) -> None:
        self.cut_power()

    @property
    def console(self) -> str:
        """What the machine has written to its serial console since it was made."""
        path = self.folder / "console.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self) -> None:
        """Switch it on and wait until its SSH server answers."""
        if not self.port:
            self._prepare()
        begin = len(self.console)
        with (self.folder / "qemu.log").open("ab") as log:
            # A session of its own, so that Ctrl-C in the tests does not end the machine in the middle of its teardown.
            self._process = subprocess.Popen(
                self._argv(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        try:
            self._wait_until_up(begin)
        except BaseException:
            self.cut_power()
            raise

    def _wait_until_up(self, begin: int) -> None:
        """Wait for the SSH server of a start, or restart, since which the console is `begin` characters longer."""

        # Asked only once it listens: QEMU accepts connections for a machine that has not booted, and greetings that
        # nobody waits for keep a busy machine from ever getting to one that counts.
        def up() -> bool:
            return self._ended() or (_LISTENING in self.console[begin:] and self._answers())

        if not eventually(up, _BOOT_SECONDS):
            raise RuntimeError(f"The virtual Pi did not start:\n{self.console[begin:][-3000:]}")
        if self._ended():
            raise RuntimeError(f"QEMU ended: {(self.folder / 'qemu.log').read_text()[-2000:]}")

    def _ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def cut_power(self) -> None:
        """Kill it: what its kernel had not yet written to the disk is lost. Nothing where it is off."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def reboot(self) -> None:
        """An orderly restart from inside: every process is told to end, file systems are unmounted."""
        begin, was = len(self.console), self.boot_id()
        self.run("/vm/busybox", "reboot")
        self._wait_until_up(begin)
        assert self.boot_id() != was

    def boot_id(self) -> str:
        """What is another one after each start of its kernel."""
        return self.run("cat", _BOOT_ID).check().strip()

    def run(self, *argv: str, stdin: str = "", seconds: float = _COMMAND_SECONDS) -> Command:
        """Run a command as root, with OpenSSH's client and not through edgekit."""
        options = ["-F", "none", "-i", str(self.key.private), "-p", str(self.port), "-o", "BatchMode=yes"]
        options += ["-o", f"UserKnownHostsFile={self._known_hosts}", "-o", "ConnectTimeout=60", "-o", "LogLevel=ERROR"]
        done = subprocess.run(
            [_tool("ssh"), *options, "root@127.0.0.1", shlex.join(argv)],
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
        return Command(done.returncode, done.stdout, done.stderr)

    def python(self, script: str, *arguments: str, seconds: float = _COMMAND_SECONDS) -> str:
        """What a Python script prints there; it must end with 0."""
        return self.run("python3", "-", *arguments, stdin=script, seconds=seconds).check()

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """A file there, on its disk for good."""
        line = f"cat > {shlex.quote(path)} && chmod {mode:o} {shlex.quote(path)} && sync"
        self.run("sh", "-c", line, stdin=text).check()

    def wait_for(self, text: str, begin: int, stop: Callable[[], object] = lambda: False) -> bool:
        """Whether a text comes to its console after the first `begin` characters, before `stop` holds."""
        seen = []

        def looked() -> bool:
            seen[:] = [text] if text in self.console[begin:] else []
            return bool(seen or stop())

        return eventually(looked, _COMMAND_SECONDS) and bool(seen)

    def device(self, name: str = "virtual-pi", **fields: object) -> Device:
        """This machine as a device of the target `rpi4`, marked as emulated, its host key on record.

        Args:
            name: Its name.
            fields: More fields of `Device`; those given here win.
        """
        (self.folder / "ssh_config").touch()
        options = {
            "key": str(self.key.private),
            "known_hosts": str(self._known_hosts),
            "agent": False,
            "config": str(self.folder / "ssh_config"),
        }
        values = {"target": "rpi4", "transport": "ssh", "options": options, "emulated": True, **fields}
        return Device(name=name, address=f"root@127.0.0.1:{self.port}", **values)  # type: ignore[arg-type]

    @property
    def _known_hosts(self) -> Path:
        return self.folder / "known_hosts"

    def _prepare(self) -> None:
        require_tools()
        parts, base = vm_boot.boot(), disk()
        self.folder.mkdir(parents=True, exist_ok=True)
        host_key = make_key(self.folder / "host_key")
        files = {
            "authorized_keys": (self.key.public, 0o600),
            "host_key": (host_key.private.read_text(), 0o600),
            "inittab": (_INITTAB, 0o644),
            "sshd_config": (_SSHD_CONFIG, 0o644),
            "start": (_START, 0o755),
        }
        (self.folder / "initrd.gz").write_bytes(vm_boot.initrd(parts, files))
        (self.folder / "vmlinuz").symlink_to(parts.kernel)
        argv = [_tool("qemu-img"), "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(base), str(self._overlay)]
        subprocess.run(argv, check=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._known_hosts.write_text(f"[127.0.0.1]:{self.port} {' '.join(host_key.public.split()[:2])}\n")

    @property
    def _overlay(self) -> Path:
        return self.folder / "disk.qcow2"

    def _argv(self) -> list[str]:
        return [
            *(_tool("qemu-system-aarch64"), "-M", "virt", "-cpu", CPU, "-smp", str(CORES), "-m", str(MEMORY_MIB)),
            *("-accel", "tcg,thread=multi", "-nodefaults", "-display", "none", "-rtc", f"base={self.clock}"),
            *("-kernel", str(self.folder / "vmlinuz"), "-initrd", str(self.folder / "initrd.gz")),
            # A kernel that panics starts anew: a test that waits for it would else wait for ever.
            *("-append", "console=ttyAMA0 panic=1 loglevel=4"),
            *(
                "-chardev",
                f"file,id=console,append=on,path={self.folder / 'console.log'}",
                "-serial",
                "chardev:console",
            ),
            # No way out: the device gets everything from the host.
            *("-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{self.port}-:22"),
            *("-device", "virtio-net-pci,netdev=net,romfile="),
            *("-drive", f"if=none,id=disk,format=qcow2,cache=unsafe,file={self._overlay}"),
            *("-device", "virtio-blk-pci,drive=disk"),
        ]

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            with socket.create_connection(("127.0.0.1", self.port), timeout=_GREETING_SECONDS) as probe:
                return probe.recv(4) == b"SSH-"
        return False


_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_LISTENING = "Server listening on 0.0.0.0"


def _found(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _tool(program: str) -> str:
    found = _found(program)
    if found is None:
        raise rootfs.UnavailableError(f"'{program}' is not here: apt-get install {TOOLS[program]}")
    return found


def main() -> int:
    """Say whether a machine can run here; what it boots is made where that is not done yet."""
    try:
        require_tools()
        vm_boot.boot()
        print(f"the virtual Pi's disk: {disk()}", file=sys.stderr)
    except rootfs.UnavailableError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
