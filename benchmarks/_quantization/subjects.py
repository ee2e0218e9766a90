"""The networks that are quantized, what they are calibrated with and judged on; and their preparation in a child process.

    python -m benchmarks._quantization.subjects NAME FOLDER [EXAMPLES]

writes into the folder: `program.pt2`, the exported network; `calibration/<input>.npy` and `tested/<input>.npy`;
`reference.npy`, what the float network answers in torch for the tested inputs; and what else the judging needs. With a
number, only that many examples are tested: for a run that shows no numbers.
"""

from __future__ import annotations

import copy
import importlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.core.user_code import load_name

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
_BATCH = 50


@dataclass(frozen=True)
class Subject:
    """One network with its data.

    Attributes:
        kind: `photos`, `images` or `sentences`: how it is judged.
        source: The factory, relative to the repository.
        task: The task that `edgekit compile` is given, relative to this folder.
        reference_task: The same for a backend that is evaluated by reference, with fewer tested examples.
    """

    kind: str
    source: str
    task: str
    reference_task: str = ""


IMAGES = tuple(f"{dataset}_{network}" for dataset in ("mnist", "fashion") for network in ("cnn", "mlp", "vit"))
_PHOTOS = "examples/efficientnet_lite0/model.py:build"
SUBJECTS: Mapping[str, Subject] = {
    "photos-A": Subject("photos", _PHOTOS, "crops.py:CalibratedOnA"),
    "photos-B": Subject("photos", _PHOTOS, "crops.py:CalibratedOnB"),
    **{
        name: Subject(
            "images",
            f"examples/mnist/networks.py:{name}",
            f"images.py:{'Mnist' if name.startswith('mnist') else 'FashionMnist'}",
            f"images.py:{'Mnist' if name.startswith('mnist') else 'FashionMnist'}ReferenceEvaluated",
        )
        for name in IMAGES
    },
    "minilm": Subject("sentences", "examples/networks/networks.py:minilm", "sentences.py:Sentences"),
}


def prepare(name: str, folder: Path, limit: int | None = None) -> None:
    """See this file's head."""
    import torch

    torch.set_num_threads(1)
    subject = SUBJECTS[name]
    file, _, factory = subject.source.partition(":")
    module, inputs = load_name(ROOT / file, factory)()
    torch.export.save(torch.export.export(module, tuple(inputs.values())), folder / "program.pt2")
    _PREPARERS[subject.kind](name, subject, module, folder, limit)
    weights = sum(p.numel() * p.element_size() for p in module.state_dict().values())
    (folder / "subject.json").write_text(json.dumps({"weights_bytes": weights, "inputs": list(inputs)}))


def answers(module: Any, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """The module's output (N, …) for inputs (N, …), in float32."""
    import torch

    with torch.inference_mode():
        found = [
            module(*(torch.tensor(array[start : start + _BATCH]) for array in arrays.values())).numpy()
            for start in range(0, len(next(iter(arrays.values()))), _BATCH)
        ]
    return np.concatenate(found)


def _write(folder: Path, part: str, arrays: Mapping[str, np.ndarray]) -> None:
    (folder / part).mkdir(exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / part / f"{name}.npy", array)


def _calibration(subject: Subject, folder: Path) -> None:
    file, _, name = subject.task.partition(":")
    task = load_name(HERE / file, name)()
    batches = list(task.examples("calibration"))
    _write(folder, "calibration", {key: np.concatenate([b[key] for b in batches]) for key in batches[0]})


def _photos(name: str, subject: Subject, module: Any, folder: Path, limit: int | None) -> None:
    crops = importlib.import_module("benchmarks._quantization.crops")
    own = name[-1]
    _calibration(subject, folder)
    pixels, names = (part[:limit] for part in crops.half(crops.OTHER[own]))
    image = crops.normalized(pixels)
    _write(folder, "tested", {"image": image})
    (folder / "names.json").write_text(json.dumps(names))
    np.save(folder / "reference.npy", answers(module, {"image": image}))
    np.save(folder / "grey.npy", answers(module, {"image": crops.normalized(crops.one_grey_level(pixels))}))
    np.save(folder / "bf16.npy", answers(_bf16_weights(module), {"image": image}))
    # For NNCF's accuracy control: crops of the calibration half that did not set ranges, and what float32 says of them.
    rest = crops.normalized(crops.half(own)[0][crops.CALIBRATION : crops.CALIBRATION + crops.VALIDATION])
    _write(folder, "validation", {"image": rest})
    np.save(folder / "validation_reference.npy", answers(module, {"image": rest}))


def _bf16_weights(module: Any) -> Any:
    import torch

    rounded = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in rounded.parameters():
            parameter.copy_(parameter.to(torch.bfloat16).to(torch.float32))
    return rounded


def _images(name: str, subject: Subject, module: Any, folder: Path, limit: int | None) -> None:
    _calibration(subject, folder)
    from mnist_data import load  # on the path since the task was loaded

    image, labels = (part[:limit] for part in load(name.partition("_")[0], "test"))
    _write(folder, "tested", {"image": image})
    np.save(folder / "labels.npy", labels)
    np.save(folder / "reference.npy", answers(module, {"image": image}))


def _sentences(_name: str, subject: Subject, module: Any, folder: Path, limit: int | None) -> None:
    sentences = importlib.import_module("benchmarks._quantization.sentences")
    _calibration(subject, folder)
    arrays = sentences.tokens(sentences.tested()[:limit])
    _write(folder, "tested", arrays)
    np.save(folder / "reference.npy", answers(module, arrays))


_PREPARERS = {"photos": _photos, "images": _images, "sentences": _sentences}


if __name__ == "__main__":
    prepare(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else None)
