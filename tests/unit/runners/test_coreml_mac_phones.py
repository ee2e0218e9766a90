"""What devicectl writes, read from recordings and from what is broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgekit.core.device import Device
from edgekit.core.errors import ConfigError, StableDeviceError, TransientDeviceError
from edgekit.runners._coreml_mac import phones
from edgekit.runners._coreml_mac.phones import Listing
from tests.devices.mac import UDID, listing, phone

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures/coreml_mac"
MAC = Device("mini", "iphone15", "ssh")


def listed(document, returncode=0, stderr=""):
    text = document if isinstance(document, str) else json.dumps(document)
    return Listing(returncode, stderr, len(text.encode()), text)


def parsed(*devices):
    return phones.parse(listed(listing(*devices)), MAC)


@pytest.mark.parametrize("name", ["xcode26_nothing_connected", "wired_ipad", "unpaired", "xcode27_simulator"])
def test_a_listing_is_read(name):
    fixture = json.loads((FIXTURES / f"{name}.json").read_text())
    found = phones.parse(listed(fixture["output"]), MAC)
    keys = ("name", "udid", "model", "os", "trouble")
    assert [{key: getattr(one, key) for key in keys} for one in found] == fixture["expected"]


def test_every_recording_says_where_it_is_from():
    for path in FIXTURES.glob("*.json"):
        fixture = json.loads(path.read_text())
        assert fixture["source"], path
        assert fixture["verified"], path


def test_an_error_of_devicectl_is_told_with_those_below_it():
    fixture = json.loads((FIXTURES / "failed_transport.json").read_text())
    with pytest.raises(StableDeviceError, match=fixture["expected"]):
        phones.parse(listed(fixture["output"], 1), MAC)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"info": ', "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "no `result.devices`"),
        ('{"result": {"devices": 3}}', "no `result.devices`"),
        ('{"result": {"devices": [' + ",".join(["{}"] * 501) + "]}}", "no `result.devices`"),
        ("", "no `result.devices`"),
    ],
)
def test_a_listing_that_is_none_is_an_error_with_the_command_to_look_with(text, said):
    with pytest.raises(StableDeviceError, match=said) as caught:
        phones.parse(listed(text), MAC)
    assert "xcrun devicectl list devices" in caught.value.hint


def test_a_listing_longer_than_was_read_is_refused():
    with pytest.raises(StableDeviceError, match="has 5000000 bytes"):
        phones.parse(Listing(0, "", 5_000_000, "{}"), MAC)


def test_entries_of_any_shape_do_no_harm():
    strange = {"identifier": 3, "hardwareProperties": [], "deviceProperties": None, "connectionProperties": "x"}
    assert phones.parse(listed({"result": {"devices": [None, 4, strange]}}), MAC) == []
    (found,) = parsed(phone(name="\x1b[31mred\x1b[0m", osVersionNumber=18))
    assert "\x1b" not in str(found)
    assert found.os == ""


def test_the_only_phone_that_can_be_used_is_the_one_that_is_meant():
    found = parsed(
        phone(), phone(udid="other", tunnelState="unavailable"), phone(udid="watch", deviceType="appleWatch")
    )
    assert phones.choose(found, "", MAC).udid == UDID


def test_a_phone_whose_tunnel_can_be_opened_can_be_used():
    assert phones.choose(parsed(phone(tunnelState="disconnected")), "", MAC).udid == UDID


def test_of_several_phones_one_has_to_be_named():
    found = parsed(phone(), phone(udid="B", name="Second"))
    with pytest.raises(ConfigError, match=r"Several phones are attached to 'mini': 'Test iPhone' .*'Second'") as caught:
        phones.choose(found, "", MAC)
    assert f"runner_options: {{device: {UDID}}}" in caught.value.hint
    assert phones.choose(found, "Second", MAC).udid == "B"
    assert phones.choose(found, "B", MAC).name == "Second"


def test_an_unknown_phone_is_named_with_those_there_are():
    with pytest.raises(ConfigError, match=r"knows no phone 'Zed'\. It knows: 'Test iPhone'"):
        phones.choose(parsed(phone()), "Zed", MAC)


@pytest.mark.parametrize("devices", [(), (phone(tunnelState="unavailable"), phone(udid="B", pairingState="unpaired"))])
def test_with_no_phone_connected_what_is_known_is_listed(devices):
    with pytest.raises(StableDeviceError, match="No iPhone is connected to 'mini'") as caught:
        phones.choose(parsed(*devices), "", MAC)
    assert all(name in caught.value.message for name in (["none"] if not devices else ["unavailable", "not paired"]))
    assert "--target mac" in caught.value.hint


@pytest.mark.parametrize(
    ("changes", "said", "hint"),
    [
        ({"developerModeStatus": "disabled"}, "Developer Mode is off", "Privacy & Security, Developer Mode"),
        ({"pairingState": "unpaired"}, "not paired", "answer Trust"),
        ({"tunnelState": "unavailable"}, "not connected", "Attach the phone by cable"),
    ],
)
def test_a_phone_in_a_bad_state_is_told_with_what_to_do(changes, said, hint):
    with pytest.raises(StableDeviceError, match=said) as caught:
        phones.choose(parsed(phone(**changes)), UDID, MAC)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("The device is locked. (com.apple.mobiledevice 0xE80000E2)", "Unlock the phone"),
        ("codesign: errSecInternalComponent", "security unlock-keychain"),
        ("Signing for modelrunnerd requires a development team.", "development_team"),
        ("Model runner directory not found at expected path", "wheel for macOS"),
    ],
)
def test_known_words_get_advice_and_keep_the_kind_of_error(said, hint):
    assert hint in phones.advised(StableDeviceError(said, "old")).hint
    assert isinstance(phones.advised(TransientDeviceError(said)), TransientDeviceError)


def test_unknown_words_keep_their_hint():
    error = StableDeviceError("something else", "old")
    assert phones.advised(error) is error
