"""A program in a foreign format as a live torch module, checked against the original before anything is built on it."""

from __future__ import annotations

from pathlib import Path

from edgekit.core.errors import VerificationError
from edgekit.core.files import sha256_text
from edgekit.core.model import Model
from edgekit.flow.pipeline import Tools
from edgekit.flow.state import ModelInfo, ModelState, info_of
from edgekit.flow.verify import TOLERANCES, compare
from edgekit.frontends.base import frontend_for


def as_torch(state: ModelState, tools: Tools) -> ModelState:
    """The state itself where it is torch already, else its model imported into torch.

    Raises:
        UnsupportedModelError: Something in it cannot be imported; it is named.
        VerificationError: The imported module does not compute what the original computes.
    """
    if state.info.format == "pt2":
        return state
    frontend = frontend_for(tools.request.source)
    code = "".join(path.read_text(encoding="utf-8") for path in sorted(_importer().rglob("*.py")))
    key = sha256_text(f"{state.info.digest}:{code}")
    known = tools.cache.record("imports", key, ModelInfo)

    def load() -> Model:
        with tools.progress.step(f"importing {tools.request.source} into torch"):
            return frontend.to_torch(state.live())

    if known is not None:
        return ModelState(known, load)
    model = load()
    _check(state.live(), model)
    info = info_of(model)
    tools.cache.put_record("imports", key, info)
    return ModelState(info, lambda: model)


def _importer() -> Path:
    """The folder of the importer: a better importer gives another module for the same file."""
    return Path(__file__).resolve().parent.parent / "frontends" / "_onnx_import"


def _check(original: Model, imported: Model) -> None:
    reference = original.program.run(original.example_inputs)
    got = imported.program.run(imported.example_inputs)
    tolerance = TOLERANCES["float32"]
    for name, value in reference.items():
        parity = compare(name, value, got[name])
        if parity.cosine < tolerance.min_cosine or parity.snr_db < tolerance.min_snr_db:
            raise VerificationError(
                f"Imported into torch, {original.source} does not compute what it computes in ONNX Runtime: output"
                f" '{name}' has an SNR of {parity.snr_db:.1f} dB.",
                "Please report the file; meanwhile use a backend that reads ONNX: --backend onnxruntime",
            )
