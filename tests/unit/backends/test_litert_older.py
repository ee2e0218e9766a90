"""What a `.tflite` file asks of runtimes from before LiteRT."""

from __future__ import annotations

import pytest

from edgekit.backends._litert import flatbuffer
from edgekit.backends._litert.older import RUNTIMES, older_runtimes, operator_versions
from edgekit.backends._litert.operator_versions import NEWEST
from edgekit.core.errors import BackendError
from tests.devices.operator_versions import model_naming
from tests.unit.agent.models import tflite_model

ADD, CONV_2D, COMPOSITE = 0, 3, 206


def test_codes_and_versions_are_those_that_the_vendors_reader_sees(tmp_path):
    main, _ = tflite_model(tmp_path, 1)
    content = (tmp_path / main).read_bytes()
    codes = flatbuffer.read(content).operatorCodes
    assert operator_versions(content) == {(code.builtinCode, code.version) for code in codes}


@pytest.mark.parametrize(("code", "version"), [(ADD, 1), (CONV_2D, 8), (COMPOSITE, 1), (CONV_2D, 300)])
def test_a_code_is_read_from_its_old_and_its_new_place(code, version):
    content = model_naming(code, version)
    seen = flatbuffer.read(content).operatorCodes[0]
    assert (seen.builtinCode, seen.version) == (code, version)
    assert operator_versions(content) == {(code, version)}


@pytest.mark.parametrize("content", [b"", b"TFL3", b"\x10\0\0\0TFL4" + bytes(32), model_naming(ADD, 1)[:40]])
def test_what_is_no_model_is_said(content):
    with pytest.raises(BackendError, match=r"\.tflite file"):
        operator_versions(content)


def lacking(tmp_path, code, version):
    path = tmp_path / "model.tflite"
    path.write_bytes(model_naming(code, version))
    return {older.package: older.lacks for older in older_runtimes(path)}


def test_an_operator_that_is_too_new_is_named_with_what_the_runtime_has(tmp_path):
    found = lacking(tmp_path, CONV_2D, 8)
    assert found["tflite-runtime==2.14.0"] == ("CONV_2D version 8 (it has versions up to 7)",)


def test_releases_differ(tmp_path):
    found = lacking(tmp_path, 2, 4)
    assert found["tflite-runtime==2.14.0"] == ()
    assert found["tflite-runtime==2.13.0"] == ("CONCATENATION version 4 (it has versions up to 3)",)


@pytest.mark.parametrize(("code", "name"), [(COMPOSITE, "STABLEHLO_COMPOSITE"), (250, "operator 250")])
def test_an_operator_of_later_times_is_named(tmp_path, code, name):
    assert lacking(tmp_path, code, 1)["tflite-runtime==2.14.0"] == (
        f"{name} version 1 (it does not have this operator)",
    )


def test_the_table_knows_every_release_that_is_tried():
    assert {release for operator in NEWEST.values() for release in operator.versions} == set(RUNTIMES)
