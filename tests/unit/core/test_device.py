from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
import yaml

from edgekit.core.device import Device, SecretReference, choose_devices, load_devices
from edgekit.core.errors import ConfigError
from edgekit.core.target import find_targets

ROOT = Path(__file__).resolve().parents[3]


def written(folder: Path, text: str) -> Path:
    path = folder / "devices.yaml"
    path.write_text(f"schema_version: 1\n{text}")
    return path


def test_an_entry_becomes_a_device_with_its_key_as_name(tmp_path: Path) -> None:
    path = written(tmp_path, "devices:\n  pi: {target: rpi4, transport: ssh, address: 'pi@host:22', emulated: true}\n")
    device = load_devices(path)["pi"]
    assert device == Device("pi", "rpi4", "ssh", "pi@host:22", emulated=True)
    assert (device.root, device.python) == (".edgekit", "python3")


def test_no_file_means_no_devices(tmp_path: Path) -> None:
    assert load_devices(tmp_path / "devices.yaml") == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "devices:\n  pi:\n    target: rpi4\n    transport: ssh\n    adress: x\n",
            "devices.yaml:6: unknown key 'adress'",
        ),
        ("devices:\n  pi: {target: rpi4}\n", "devices.yaml:3"),
        ("devices:\n  local: {target: linux-x86, transport: local}\n", "devices.yaml:3: the name 'local' is reserved"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_devices(written(tmp_path, text))
    assert words in caught.value.message


def test_the_example_file_is_valid_as_it_is() -> None:
    assert load_devices(ROOT / "devices.yaml") == {}


def test_the_examples_in_the_example_file_are_valid_too(tmp_path: Path) -> None:
    head, _, examples = (ROOT / "devices.yaml").read_text().partition("devices: {}\n")
    path = tmp_path / "devices.yaml"
    path.write_text(
        f"{head}devices:\n" + "".join(line.removeprefix("#") for line in examples.splitlines(keepends=True))
    )
    devices = load_devices(path)
    assert len(devices) >= 3
    assert {device.target for device in devices.values()} <= set(find_targets())
    assert isinstance(yaml.safe_load(path.read_text()), dict)


PI, SPARE, PHONE = (
    Device("pi", "rpi4", "ssh"),
    Device("spare", "rpi4", "ssh"),
    Device("phone", "pixel8", "adb"),
)


def known(*devices: Device) -> dict[str, Device]:
    return {device.name: device for device in devices}


def test_the_only_device_of_a_target_is_taken() -> None:
    assert choose_devices(known(PI, PHONE), "rpi4", None, every=False) == [PI]


def test_of_several_one_must_be_named_or_all_asked_for() -> None:
    devices = known(PI, SPARE, PHONE)
    with pytest.raises(ConfigError, match="Several devices are of target 'rpi4': pi, spare") as caught:
        choose_devices(devices, "rpi4", None, every=False)
    assert "--device pi" in caught.value.hint
    assert "--all" in caught.value.hint
    assert choose_devices(devices, "rpi4", "spare", every=False) == [SPARE]
    assert choose_devices(devices, "rpi4", None, every=True) == [PI, SPARE]


def test_where_there_is_none_the_hint_is_an_entry_that_works(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No device of target 'rpi5' is known") as caught:
        choose_devices(known(PI), "rpi5", None, every=False)
    entry = textwrap.dedent(caught.value.hint.partition("devices.yaml:\n")[2].partition("then:")[0])
    assert load_devices(written(tmp_path, entry))["my-rpi5"].target == "rpi5"


def test_a_device_of_another_target_is_refused() -> None:
    with pytest.raises(ConfigError, match="The device 'phone' is a pixel8, not a rpi4"):
        choose_devices(known(PI, PHONE), "rpi4", "phone", every=False)


def test_an_unknown_device_offers_the_nearest() -> None:
    with pytest.raises(ConfigError, match="There is no device 'phnoe'. Did you mean 'phone'?"):
        choose_devices(known(PI, PHONE), "pixel8", "phnoe", every=False)


def test_a_secret_is_read_from_where_the_file_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PI_PASSWORD", "s3cret")
    reference = SecretReference("PI_PASSWORD")
    assert reference.resolve() == "s3cret"
    assert "s3cret" not in repr(reference)
    monkeypatch.delenv("PI_PASSWORD")
    with pytest.raises(ConfigError, match="PI_PASSWORD is not set"):
        reference.resolve()
