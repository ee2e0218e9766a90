"""What an Android device tells of itself, read from recordings; each names where it comes from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgekit.runners import _android_facts as android
from edgekit.runners._shell_facts import free_bytes, sections

FIXTURES = sorted((Path(__file__).resolve().parents[2] / "fixtures" / "adb").glob("*.json"))
READERS = {
    "getprop": android.identity,
    "dumpsys battery": android.battery,
    "dumpsys thermalservice": android.thermal,
}


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_a_recorded_output_gives_its_facts(path):
    recorded = json.loads(path.read_text())
    assert recorded["source"]
    assert recorded["verified"]
    found = READERS[recorded["command"]](recorded["output"])
    assert {key: found[key] for key in recorded["expected"]} == recorded["expected"]


def test_what_a_device_does_not_tell_is_none():
    found = android.facts({})
    assert {key for key, value in found.items() if value not in (None, False)} == set()
    assert {"soc", "abi", "api_level", "battery_pct", "thermal_status", "ram_mib", "kernel"} <= found.keys()


def test_the_output_of_one_command_is_taken_apart_by_its_marks():
    parts = sections("missing abc\n\nMARK getprop\n[a]: [b]\n\nMARK uname\n6.1\n", "MARK")
    assert parts == {"": "missing abc\n\n", "getprop": "[a]: [b]\n\n", "uname": "6.1\n"}


def test_memory_clock_and_cores_are_read():
    found = android.facts(
        {
            "meminfo": "MemTotal:        7590488 kB\nMemAvailable:    1837916 kB\n",
            "governor": "sched_pixel\nsched_pixel\n",
            "frequency": "1704000\n2914000\n",
            "cores": "/sys/devices/system/cpu/cpu0\n/sys/devices/system/cpu/cpu10\n",
            "loadavg": "1.50 1.2 1.1 1/100 5\n",
            "uptime": "17486.5 1000\n",
        }
    )
    assert (found["ram_mib"], found["ram_available_mib"]) == (7412.6, 1794.8)
    assert (found["governor"], found["freq_mhz"], found["cores"]) == ("sched_pixel", 2914.0, 2)
    assert (found["load_1min"], found["uptime_s"]) == (1.5, 17486.5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Filesystem 1K-blocks Used Available Use% Mounted on\n/dev/a 1000 400 600 40% /data\n", 600 * 1024),
        (
            "Filesystem 1K-blocks Used Available Use% Mounted on\n/dev/block/very/long\n  1000 400 600 40% /data\n",
            600 * 1024,
        ),
        ("df: /x: No such file or directory\n", None),
        ("", None),
    ],
)
def test_free_space_is_read_or_unknown(text, expected):
    assert free_bytes(text) == expected
