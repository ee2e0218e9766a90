from __future__ import annotations

import pytest

from edgekit.agent import facts


def tree(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return {name: str(folder / name) for name in ("proc", "sys", "etc")}


CORE = "processor\t: {}\nBogoMIPS\t: 108.00\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: {}\n\n"
RASPBERRY_PI_4 = {
    "proc/cpuinfo": "".join(CORE.format(i, "0xd08") for i in range(4)) + "Model\t\t: Raspberry Pi 4 Model B Rev 1.4\n",
    "proc/meminfo": "MemTotal:        3884384 kB\nMemFree:  100 kB\nMemAvailable:    3345612 kB\n",
    "proc/loadavg": "0.52 0.58 0.59 1/467 12345\n",
    "proc/uptime": "351735.47 1402386.86\n",
    "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "600000\n",
    "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "ondemand\n",
    "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "1800000\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "48312\n",
    "sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n",
    "etc/os-release": 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\n',
}
PHONE = {
    "proc/cpuinfo": CORE.format(0, "0xd05") + CORE.format(1, "0xd44"),
    "sys/class/thermal/thermal_zone0/type": "battery\n",
    "sys/class/thermal/thermal_zone0/temp": "30000\n",
    "sys/class/power_supply/usb/type": "USB\n",
    "sys/class/power_supply/battery/type": "Battery\n",
    "sys/class/power_supply/battery/capacity": "87\n",
}


def test_a_raspberry_pi_is_read_whole(tmp_path):
    found = facts.read(**tree(tmp_path, RASPBERRY_PI_4))
    assert found["cpu_model"] == "Cortex-A72"
    assert (found["cores"], found["ram_mib"], found["ram_available_mib"]) == (4, 3793.3, 3267.2)
    assert (found["governor"], found["freq_mhz"], found["temp_c"], found["throttled"]) == (
        "ondemand",
        1800.0,
        48.3,
        True,
    )
    assert found["machine_model"] == "Raspberry Pi 4 Model B Rev 1.4"
    assert found["os"] == "Debian GNU/Linux 12 (bookworm)"
    assert (found["load_1min"], found["uptime_s"], found["battery_pct"]) == (0.52, 351735.47, None)


def test_a_phone_has_two_kinds_of_cores_and_a_battery(tmp_path):
    found = facts.read(**tree(tmp_path, PHONE))
    assert found["cpu_model"] == "Cortex-A55 + Cortex-X1"
    assert found["battery_pct"] == 87
    assert found["temp_c"] is None, "a battery's temperature is not the processor's"


def test_an_earlier_throttling_is_not_a_present_one(tmp_path):
    roots = tree(tmp_path, {"sys/devices/platform/soc/soc:firmware/get_throttled": "0x50000\n"})
    assert facts.heat(roots["sys"])["throttled"] is False


def test_what_a_device_does_not_tell_is_none(tmp_path):
    found = facts.read(**tree(tmp_path, {}))
    unknown = (
        "cpu_model",
        "ram_mib",
        "governor",
        "freq_mhz",
        "temp_c",
        "throttled",
        "os",
        "load_1min",
        "machine_model",
    )
    assert {key: found[key] for key in unknown} == dict.fromkeys(unknown)


@pytest.mark.parametrize(
    ("machine", "pointer", "expected"),
    [("aarch64", 8, "aarch64"), ("aarch64", 4, "armv7l"), ("x86_64", 4, "i686"), ("armv7l", 4, "armv7l")],
)
def test_a_32_bit_system_under_a_64_bit_kernel_needs_32_bit_wheels(machine, pointer, expected):
    assert facts.architecture(machine, pointer) == expected
