"""The bytes of an ORT-format file, made the same each time.

ONNX Runtime writes one part of it, the table of what each operator's type parameters are bound to, in the order of a
hash table that is seeded anew in each process. That part stands at the front of the file and nothing behind it points
into it: it is written again here, sorted.
"""

from __future__ import annotations

import struct
from typing import Any

from edgekit.backends._onnxruntime.graph import EXTRA, WHY
from edgekit.core.errors import BackendError
from edgekit.core.extras import require

_FBS = "onnxruntime.tools.ort_format_model.ort_flatbuffers_py.fbs"
_IDENTIFIER = b"ORTM"
# The largest alignment in the format's schema: what stands behind the front keeps its own. A larger step would let the
# length of the old front, which varies, show.
_ALIGNMENT = 8
_PLACEHOLDER = 0x7FFFFFFF


def in_order(content: bytes) -> bytes:
    """An ORT-format file with its operators' type parameters sorted.

    Raises:
        BackendError: The file is not laid out as this runtime's was.
    """
    session = _fbs("InferenceSession").InferenceSession.GetRootAs(content, 0)
    model = session.Model()
    if content[4:8] != _IDENTIFIER or model is None:
        raise BackendError("ONNX Runtime wrote no ORT-format file.")
    place = model._tab.Pos
    # Built back to front: all that the model holds stands behind the model's own table and that table's layout.
    cut = min(place, place - struct.unpack_from("<i", content, place)[0])
    cut -= cut % _ALIGNMENT
    front = _front(session)
    front += bytes(-len(front) % _ALIGNMENT)
    slot = front.index(struct.pack("<I", _PLACEHOLDER))
    kept = _without_front(content, cut, place)
    return front[:slot] + struct.pack("<I", len(front) + place - cut - slot) + front[slot + 4 :] + kept


def _without_front(content: bytes, cut: int, place: int) -> bytes:
    """What stands from `cut` on, with zeros where the old front reached past it."""
    first = min(place, place - struct.unpack_from("<i", content, place)[0])
    return bytes(first - cut) + content[first:]


def _front(session: Any) -> bytes:
    """A new root, with a placeholder for where the model is, and the sorted table."""
    flatbuffers = require("flatbuffers", EXTRA, WHY)
    builder = flatbuffers.Builder(1024)
    fbs = _fbs("InferenceSession")
    version = builder.CreateString(session.OrtVersion())
    resolver = _resolver(builder, session.KernelTypeStrResolver())
    fbs.InferenceSessionStart(builder)
    fbs.InferenceSessionAddOrtVersion(builder, version)
    # The model's slot is the second; an offset to another buffer has to be written as a plain number.
    builder.PrependUint32Slot(1, _PLACEHOLDER, 0)
    if resolver is not None:
        fbs.InferenceSessionAddKernelTypeStrResolver(builder, resolver)
    builder.Finish(fbs.InferenceSessionEnd(builder), file_identifier=_IDENTIFIER)
    return bytes(builder.Output())


def _resolver(builder: Any, resolver: Any) -> int | None:
    if resolver is None:
        return None
    fbs = _fbs("KernelTypeStrResolver")
    entries = [resolver.OpKernelTypeStrArgs(i) for i in range(resolver.OpKernelTypeStrArgsLength())]
    made = [_operator(builder, entry) for entry in sorted(entries, key=lambda entry: bytes(entry.OpId()))]
    listed = _vector(builder, fbs.KernelTypeStrResolverStartOpKernelTypeStrArgsVector, made)
    fbs.KernelTypeStrResolverStart(builder)
    fbs.KernelTypeStrResolverAddOpKernelTypeStrArgs(builder, listed)
    return int(fbs.KernelTypeStrResolverEnd(builder))


def _operator(builder: Any, entry: Any) -> int:
    fbs = _fbs("OpIdKernelTypeStrArgsEntry")
    parameters = [entry.KernelTypeStrArgs(i) for i in range(entry.KernelTypeStrArgsLength())]
    made = [_parameter(builder, item) for item in sorted(parameters, key=lambda item: bytes(item.KernelTypeStr()))]
    name = builder.CreateString(entry.OpId())
    listed = _vector(builder, fbs.OpIdKernelTypeStrArgsEntryStartKernelTypeStrArgsVector, made)
    fbs.OpIdKernelTypeStrArgsEntryStart(builder)
    fbs.OpIdKernelTypeStrArgsEntryAddOpId(builder, name)
    fbs.OpIdKernelTypeStrArgsEntryAddKernelTypeStrArgs(builder, listed)
    return int(fbs.OpIdKernelTypeStrArgsEntryEnd(builder))


def _parameter(builder: Any, item: Any) -> int:
    fbs, argument = _fbs("KernelTypeStrArgsEntry"), _fbs("ArgTypeAndIndex")
    made = []
    for index in range(item.ArgsLength()):
        argument.ArgTypeAndIndexStart(builder)
        argument.ArgTypeAndIndexAddArgType(builder, item.Args(index).ArgType())
        argument.ArgTypeAndIndexAddIndex(builder, item.Args(index).Index())
        made.append(argument.ArgTypeAndIndexEnd(builder))
    name = builder.CreateString(item.KernelTypeStr())
    listed = _vector(builder, fbs.KernelTypeStrArgsEntryStartArgsVector, made)
    fbs.KernelTypeStrArgsEntryStart(builder)
    fbs.KernelTypeStrArgsEntryAddKernelTypeStr(builder, name)
    fbs.KernelTypeStrArgsEntryAddArgs(builder, listed)
    return int(fbs.KernelTypeStrArgsEntryEnd(builder))


def _vector(builder: Any, start: Any, offsets: list[int]) -> Any:
    start(builder, len(offsets))
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return builder.EndVector()


def _fbs(name: str) -> Any:
    return require(f"{_FBS}.{name}", EXTRA, WHY)
