"""From a `.pt2` or an `.onnx` file to a checked ONNX graph of an opset that the target's runtime reads."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

from edgekit.backends._onnxruntime.graph import EXTRA, WHY, constants_to_initializers, name_ports, strip
from edgekit.backends.base import CompileRequest
from edgekit.core.errors import UnsupportedModelError
from edgekit.core.extras import require
from edgekit.core.program import first_line

# The newest opset for which a release of ONNX Runtime has a kernel of its own for everything the exporter writes.
# Releases 1.20 to 1.26 were tried. Those from 1.24 on read opset 25 too, but 1.32 inlines its Attention into thirty
# small operators, and a transformer is 1.3 times slower.
_OPSETS = (
    ((1, 24), 24),
    ((1, 23), 23),
    ((1, 21), 22),
    ((1, 18), 21),
    ((1, 17), 20),
    ((1, 15), 19),
    ((1, 14), 18),
)
_OLDEST = ".".join(map(str, _OPSETS[-1][0]))


def newest_opset(version: str | None) -> int:
    """The opset to write for a release of ONNX Runtime; None stands for the newest.

    Raises:
        UnsupportedModelError: The release is older than what the exporter can write for.
    """
    if version is None:
        return _OPSETS[0][1]
    release = _release(version)
    for first, opset in _OPSETS:
        if release >= first:
            return opset
    raise UnsupportedModelError(
        f"The target pins onnxruntime {version}; models can be written for {_OLDEST} and newer.",
        f"In the target file: runtimes: {{onnxruntime: {_OLDEST}.0}} or newer.",
    )


def _release(version: str) -> tuple[int, int]:
    major, _, rest = version.partition(".")
    minor = rest.partition(".")[0]
    if not (major.isdigit() and minor.isdigit()):
        raise UnsupportedModelError(f"'{version}' is no version of onnxruntime.", "Write it as 1.32.0.")
    return int(major), int(minor)


def to_onnx(request: CompileRequest, version: str | None, exported: Any | None) -> Any:
    """The program as an ONNX `ModelProto` with our names, static shapes and nothing of the machine in it.

    Args:
        request: The request.
        version: The release of ONNX Runtime that has to read it; None for the newest.
        exported: The torch program of a `.pt2`; None for an `.onnx`.

    Raises:
        UnsupportedModelError: It cannot be converted, or the target's runtime is too old for it.
    """
    onnx = require("onnx", EXTRA, WHY)
    if exported is not None:
        model = _exported(request, exported, newest_opset(version))
    else:
        model = onnx.load(str(request.program))
        _check_opset(model, version, request)
    name_ports(model, request.inputs, request.outputs)
    constants_to_initializers(model)
    strip(model)
    if exported is not None:
        # The exporter always writes its newest IR version, which a runtime of that opset's age does not read.
        model.ir_version = onnx.helper.find_min_ir_version_for(list(model.opset_import), ignore_unknown=True)
    return model


def _exported(request: CompileRequest, exported: Any, opset: int) -> Any:
    torch = require("torch", "torch", WHY)
    require("onnxscript", EXTRA, WHY)
    examples = tuple(torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype)) for spec in request.inputs)
    with quiet():
        try:
            # No names: it would give an output the name of a value that already has it.
            program = torch.onnx.export(
                exported,
                examples,
                dynamo=True,
                external_data=False,
                opset_version=opset,
                verbose=False,
            )
        except Exception as error:
            raise UnsupportedModelError(
                f"torch.onnx cannot export {request.source}: {first_line(error)}",
                "Run with --verbose for its own words.",
            ) from error
        return program.model_proto


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's advice to its own developers (missing torchvision, deprecated internals) out of our logs."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)


def _check_opset(model: Any, version: str | None, request: CompileRequest) -> None:
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=1)
    # The one opset beyond our own choice is read, if more slowly.
    limit = newest_opset(version) + (1 if version is None or _release(version) >= _OPSETS[0][0] else 0)
    if opset > limit:
        raise UnsupportedModelError(
            f"{request.source} has opset {opset}; onnxruntime {version or 'here'} reads up to {limit}.",
            "Export it with an older opset, or pin a newer onnxruntime in the target file.",
        )
