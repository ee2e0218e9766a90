"""What a Linux device's shell tells of it, read from what such devices print."""

from __future__ import annotations

import pytest

from edgekit.runners import _linux_facts as linux
from edgekit.runners._shell_facts import sections

PI = """
MARK machine
aarch64

MARK kernel
6.1.21-v8+

MARK hostname
pi

MARK pointer
64

MARK libc
glibc 2.36

MARK /proc/cpuinfo
processor\t: 0
CPU implementer\t: 0x41
CPU part\t: 0xd08
processor\t: 1
CPU implementer\t: 0x41
CPU part\t: 0xd08

MARK /proc/meminfo
MemTotal:        3884400 kB
MemAvailable:    3300000 kB

MARK /proc/loadavg
0.50 0.2 0.1 1/100 5

MARK /proc/uptime
100.5 300.0

MARK /proc/device-tree/model
Raspberry Pi 4 Model B Rev 1.4\0
MARK /etc/os-release
PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"

MARK /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor
ondemand

MARK /sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq
1500000

MARK /sys/class/thermal/thermal_zone0/type
cpu-thermal

MARK /sys/class/thermal/thermal_zone0/temp
48687

MARK /sys/devices/platform/soc/soc:firmware/get_throttled
50000
"""


def facts(text: str) -> dict[str, object]:
    return linux.facts(sections(text, "MARK"))


def test_a_raspberry_pi_tells_what_the_agent_would():
    found = facts(PI)
    assert (found["arch"], found["kernel"], found["hostname"], found["libc"]) == (
        "aarch64",
        "6.1.21-v8+",
        "pi",
        "glibc 2.36",
    )
    assert (found["cpu_model"], found["cores"]) == ("Cortex-A72", 2)
    assert (found["governor"], found["freq_mhz"], found["temp_c"]) == ("ondemand", 1500.0, 48.7)
    assert found["throttled"] is False
    assert (found["ram_mib"], found["load_1min"], found["uptime_s"]) == (3793.4, 0.5, 100.5)
    assert (found["os"], found["machine_model"]) == ("Debian GNU/Linux 12 (bookworm)", "Raspberry Pi 4 Model B Rev 1.4")
    assert found["python"] is None


def test_what_a_device_does_not_tell_is_none_and_never_this_hosts():
    assert {key for key, value in facts("").items() if value is not None} == set()


@pytest.mark.parametrize(
    ("pointer", "arch"), [("64", "aarch64"), ("  2", "aarch64"), ("32", "armv7l"), (" 1", "armv7l"), ("", "aarch64")]
)
def test_a_32_bit_system_under_a_64_bit_kernel_is_one(pointer, arch):
    assert facts(f"MARK machine\naarch64\nMARK pointer\n{pointer}\n")["arch"] == arch


@pytest.mark.parametrize(
    ("said", "libc"),
    [("glibc 2.31", "glibc 2.31"), ("release version 2.28\n", "glibc 2.28"), ("musl", None), ("", None)],
)
def test_the_c_library_is_known_from_its_own_words(said, libc):
    assert facts(f"MARK libc\n{said}\n")["libc"] == libc


def test_a_device_cannot_have_a_file_written_outside(tmp_path):
    assert facts("MARK /proc/../../../tmp/x\nbad\nMARK /etc/passwd/../../x\nbad\nMARK /home/x\nbad\n")["os"] is None
