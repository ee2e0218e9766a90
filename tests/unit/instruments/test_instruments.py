"""Instruments on recorded trees, see tests/fixtures/conditions/README.md: unverified on hardware."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.core.run_output import ProcessRun, RunOutput, measurements_of
from edgekit.flow.energy import with_energy
from edgekit.instruments.base import Channel, energy_of, mean_power, registry, sensors
from edgekit.instruments.rapl import unwrapped

TREES = Path(__file__).resolve().parents[2] / "fixtures" / "conditions"
PACKAGE = "class/powercap/intel-rapl:0/energy_uj"
DRAM = "class/powercap/intel-rapl:0:1/energy_uj"
BATTERY = "class/power_supply/BAT0"


def read(name):
    """What the agent's sampler and its texts give for a tree."""
    sys = TREES / name / "sys"
    files = sorted({path for pattern in sensors() for path in sys.glob(pattern)})
    row = {str(path.relative_to(sys)): float(path.read_text()) for path in files}
    beside = ("name", "type", "status", "max_energy_range_uj")
    texts = [path.parent / key for path in files for key in beside]
    return row, {str(path.relative_to(sys)): path.read_text().strip() for path in texts if path.exists()}


def rows(row, seconds, change):
    """Rows a tenth of a second apart, each made from the first by `change(row, t)`."""
    return [{"t": t / 10, **change(dict(row), t / 10)} for t in range(int(seconds * 10) + 1)]


def drawing(watts):
    def change(row, t):
        row[PACKAGE] = (row[PACKAGE] + watts * t * 1e6) % 262143328850
        row[DRAM] += 1e6 * t
        return row

    return change


def test_rapl_adds_up_packages_and_memory_over_a_wraparound_and_leaves_out_what_a_package_holds():
    row, texts = read("laptop")
    rapl = registry.create("rapl")
    busy, idle = rapl.channels(rows(row, 5, drawing(15.0)), texts), rapl.channels(rows(row, 2, drawing(5.0)), texts)
    assert [channel.name for channel in busy] == ["package-0 (intel-rapl:0)", "dram (intel-rapl:0:1)"]
    found = energy_of("rapl", busy, idle, (0.5, 4.5), 400)
    assert (found.active_watts, found.idle_watts) == (pytest.approx(16.0), pytest.approx(6.0))
    assert found.joules == pytest.approx(10.0 * 4.0 / 400)
    assert 0 < found.error < 1e-6


def test_a_counter_that_wraps_never_falls():
    assert unwrapped((8.0, 9.5, 1.0, 9.0, 0.5), 10.0) == (8.0, 9.5, 11.0, 19.0, 20.5)


def test_an_ina226_gives_watts_and_other_monitors_are_left_alone():
    row, texts = read("pi4")
    found = registry.create("ina").channels(rows(row, 1, lambda row, t: row), texts)
    assert [(channel.name, channel.unit) for channel in found] == [("ina226 (hwmon2/power1_input)", "W")]
    assert mean_power(found[0]).watts == pytest.approx(3.25)
    assert registry.create("ina").channels(rows(row, 1, lambda row, t: row), {}) == []


def test_a_battery_gives_current_times_voltage_whatever_the_sign():
    row, texts = read("laptop")
    row[f"{BATTERY}/current_now"] *= -1
    found = registry.create("battery").channels(rows(row, 1, lambda row, t: row), texts)
    assert mean_power(found[0]).watts == pytest.approx(1.2 * 11.4)


def test_a_battery_without_a_current_gives_the_charge_that_went():
    row, texts = read("laptop")
    row.pop(f"{BATTERY}/current_now")

    def draining(row, t):
        return {**row, f"{BATTERY}/charge_now": row[f"{BATTERY}/charge_now"] - 1000.0 * t}

    found = registry.create("battery").channels(rows(row, 2, draining), texts)
    assert found[0].unit == "J"
    assert mean_power(found[0]).watts == pytest.approx(1e-3 * 3600 * 11.4, rel=0.01)


def test_a_battery_that_is_being_charged_says_nothing():
    row, texts = read("laptop")
    texts[f"{BATTERY}/status"] = "Charging"
    assert registry.create("battery").channels(rows(row, 1, lambda row, t: row), texts) == []


def test_the_error_grows_with_the_scatter_of_the_readings():
    def channel(spread):
        times = tuple(t / 10 for t in range(101))
        return Channel("x", "W", times, tuple(5 + spread * (-1) ** i for i in range(101)), 1e-3)

    calm, rough = mean_power(channel(0.0)), mean_power(channel(1.0))
    assert calm.watts == pytest.approx(5.0)
    assert rough.watts == pytest.approx(5.0, abs=0.02)
    assert calm.error == pytest.approx(1e-3 / 12**0.5)
    assert rough.error == pytest.approx(0.1, rel=0.02)


def test_too_few_readings_give_no_energy():
    channel = Channel("x", "W", (0.0, 0.1, 0.2, 0.3), (1.0,) * 4, 1e-3)
    assert energy_of("x", [channel], [channel], (0.0, 0.15), 10) is None


def output(sensed, window=(0.5, 4.5)):
    timing = {"window": list(window), "inferences": 400}
    run = ProcessRun("latency", "latency", 0, 1.0, 1.0, samples_ms=(1.0, 2.0), timing=timing, sensed=sensed)
    return RunOutput({}, {}, runs=(run,))


def test_energy_is_a_measurement_with_its_error_and_says_that_it_is_unverified():
    row, texts = read("laptop")
    sensed = {"active": rows(row, 5, drawing(15.0)), "idle": rows(row, 2, drawing(5.0)), "texts": texts}
    texts[f"{BATTERY}/status"] = "Charging"
    found = with_energy(measurements_of(output(sensed)), output(sensed))[-1]
    assert (found.metric, found.unit, found.values) == ("energy_mj", "mJ", (pytest.approx(100.0),))
    assert found.metadata["instrument"] == "rapl"
    assert "hardware" in found.metadata["unverified"]


@pytest.mark.parametrize(
    ("sensed", "why"),
    [
        (None, "unavailable: no instrument"),
        ({"active": [{"t": 1.0, PACKAGE: None}], "idle": [], "texts": {}}, "may not be read"),
        ({"active": [{"t": 1.0, PACKAGE: 1.0}], "idle": [], "texts": {}}, "too few readings"),
    ],
)
def test_no_energy_is_said_with_why_and_is_never_zero(sensed, why):
    found = with_energy(measurements_of(output(sensed)), output(sensed))
    assert not [m for m in found if m.metric == "energy_mj"]
    assert why in found[0].metadata["energy"]
