"""Protocol-buffers wire format: just enough to read a Core ML model without Core ML's own classes.

The evaluator is a second opinion on what coremltools wrote, so it does not read it back with coremltools.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from edgekit.core.errors import ConfigError

Field = int | memoryview
"""A field's value: a varint as a number, everything else as its bytes."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10


class Message:
    """One decoded message: its fields by number, each with all values in order.

    Args:
        data: The message's bytes.

    Raises:
        ConfigError: The bytes are cut short or are no message.
    """

    def __init__(self, data: memoryview) -> None:
        found: dict[int, list[Field]] = defaultdict(list)
        for number, value in _fields(data):
            found[number].append(value)
        self._fields: Mapping[int, Sequence[Field]] = found

    def has(self, number: int) -> bool:
        """Whether the field is there."""
        return number in self._fields

    def numbers(self) -> set[int]:
        """The numbers of the fields that are there."""
        return set(self._fields)

    def integer(self, number: int) -> int:
        """The last value of a varint field as a signed 64-bit number; 0 where it is absent."""
        values = self._fields.get(number)
        return _signed(_as_int(values[-1], number)) if values else 0

    def text(self, number: int) -> str:
        """The last value of a string field; empty where it is absent."""
        values = self._fields.get(number)
        return _as_text(values[-1], number) if values else ""

    def texts(self, number: int) -> list[str]:
        """All values of a string field."""
        return [_as_text(value, number) for value in self._fields.get(number, ())]

    def raw(self, number: int) -> memoryview:
        """The bytes of a field, the parts of a packed repeated field joined; empty where it is absent."""
        values = [_as_bytes(value, number) for value in self._fields.get(number, ())]
        return values[0] if len(values) == 1 else memoryview(b"".join(values))

    def message(self, number: int) -> Message:
        """The last value of a message field; an empty message where it is absent."""
        values = self._fields.get(number)
        return Message(_as_bytes(values[-1], number) if values else memoryview(b""))

    def messages(self, number: int) -> list[Message]:
        """All values of a repeated message field."""
        return [Message(_as_bytes(value, number)) for value in self._fields.get(number, ())]

    def mapping(self, number: int) -> dict[str, Message]:
        """A map field from strings to messages."""
        return {entry.text(1): entry.message(2) for entry in self.messages(number)}

    def varints(self, number: int) -> list[int]:
        """All values of a repeated varint field, packed or not, as signed numbers."""
        found: list[int] = []
        for value in self._fields.get(number, ()):
            if isinstance(value, int):
                found.append(_signed(value))
                continue
            position = 0
            while position < len(value):
                decoded, position = _varint(value, position)
                found.append(_signed(decoded))
        return found


def _fields(data: memoryview) -> Iterator[tuple[int, Field]]:
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, position = _varint(data, position)
            yield number, value
            continue
        if kind == _BYTES:
            length, position = _varint(data, position)
        elif kind in (_FIXED32, _FIXED64):
            length = 4 if kind == _FIXED32 else 8
        else:
            raise _damaged(f"a field of unknown wire type {kind}")
        end = position + length
        if end > len(data):
            raise _damaged("a field runs past the end")
        yield number, data[position:end]
        position = end


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for index in range(_MAX_VARINT_BYTES):
        if position + index >= len(data):
            raise _damaged("a number runs past the end")
        byte = data[position + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, position + index + 1
    raise _damaged("a number has no end")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _as_int(value: Field, number: int) -> int:
    if isinstance(value, int):
        return value
    raise _damaged(f"field {number} is no number")


def _as_bytes(value: Field, number: int) -> memoryview:
    if isinstance(value, int):
        raise _damaged(f"field {number} is no text or message")
    return value


def _as_text(value: Field, number: int) -> str:
    try:
        return bytes(_as_bytes(value, number)).decode()
    except UnicodeDecodeError as error:
        raise _damaged(f"field {number} is no UTF-8 text") from error


def _damaged(what: str) -> ConfigError:
    return ConfigError(
        f"The Core ML model file is damaged: {what}.", "Compile it anew, or copy it again from where it came from."
    )
