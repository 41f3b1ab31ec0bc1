"""A read position in the first bytes of a GGUF file that trusts no length it reads."""

from __future__ import annotations

import struct

from tasks.domain.cells import Reason
from tasks.domain.errors import TokensweepError

MAX_HEADER_BYTES = 64 * 1024 * 1024
"""The largest header that is read. Real ones are 0.7 to 16 MB."""

MIN_FETCH_BYTES = 64 * 1024
MAX_NAME_BYTES = 1 << 16
MAX_KEPT_STRING_BYTES = 4096
MAX_KEPT_ARRAY_ITEMS = 4096

STRING_TYPE = 8
ARRAY_TYPE = 9
SCALAR_TYPES: dict[int, struct.Struct] = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class NeedMoreBytes(Exception):
    """The prefix ends inside the header. `n` is how long the next prefix should be, counted from the file's start."""

    def __init__(self, n: int) -> None:
        self.n = n
        super().__init__(f"The header is longer than what was read; fetch the first {n} bytes.")


class NotGguf(TokensweepError):
    """The bytes are no GGUF file that llama.cpp would load."""

    def __init__(self, message: str, *, reason: str = "", next_step: str = "") -> None:
        super().__init__(message, reason=reason or Reason.NOT_GGUF.value, next_step=next_step)


class Cursor:
    """A read position in the prefix that never runs past it and never past the file."""

    def __init__(self, data: bytes | bytearray | memoryview, file_bytes: int | None) -> None:
        self.data = data
        self.file_bytes = file_bytes
        self.pos = 0

    def need(self, n_bytes: int, what: str) -> None:
        """Return if the next n_bytes are there; raise what the caller must do if not."""
        end = self.pos + n_bytes
        if end <= len(self.data):
            return
        if self.file_bytes is not None and end > self.file_bytes:
            raise NotGguf(
                f"The file ends after {self.file_bytes} bytes, inside its header: {what} at byte {self.pos} "
                f"needs {n_bytes} bytes more.",
                next_step="Download it again, or take it out of the catalogue.",
            )
        if end > MAX_HEADER_BYTES:
            raise NotGguf(f"{what} at byte {self.pos} claims {n_bytes} bytes; no header is that large.")
        wanted = max(end, min(2 * len(self.data), MAX_HEADER_BYTES), MIN_FETCH_BYTES)
        if self.file_bytes is not None:
            wanted = min(wanted, self.file_bytes)
        raise NeedMoreBytes(wanted)

    def skip(self, n_bytes: int, what: str) -> None:
        self.need(n_bytes, what)
        self.pos += n_bytes

    def u32(self, what: str) -> int:
        self.need(4, what)
        (value,) = _U32.unpack_from(self.data, self.pos)
        self.pos += 4
        return int(value)

    def u64(self, what: str) -> int:
        self.need(8, what)
        (value,) = _U64.unpack_from(self.data, self.pos)
        self.pos += 8
        return int(value)

    def name(self, what: str) -> str:
        n_bytes = self.u64(what)
        if n_bytes > MAX_NAME_BYTES:
            raise NotGguf(f"{what} at byte {self.pos} is {n_bytes} bytes long.")
        self.need(n_bytes, what)
        raw = bytes(self.data[self.pos : self.pos + n_bytes])
        self.pos += n_bytes
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as exc:
            raise NotGguf(f"{what} at byte {self.pos - n_bytes} is not text.") from exc

    def string_value(self, what: str) -> str | None:
        """A metadata string, or None where it is too long or too broken to matter."""
        n_bytes = self.u64(what)
        start = self.pos
        self.skip(n_bytes, what)
        if n_bytes > MAX_KEPT_STRING_BYTES:
            return None
        return bytes(self.data[start : self.pos]).decode("utf-8", "replace")

    def scalar(self, kind: int, what: str) -> int | float:
        form = SCALAR_TYPES[kind]
        self.need(form.size, what)
        (value,) = form.unpack_from(self.data, self.pos)
        self.pos += form.size
        return value  # type: ignore[no-any-return]

    def array(self, what: str) -> tuple[int, tuple[int | float, ...] | None]:
        """(length, items): items only of short numeric arrays."""
        kind = self.u32(what)
        count = self.u64(what)
        if kind == STRING_TYPE:
            self._skip_strings(count, what)
            return count, None
        if kind not in SCALAR_TYPES:
            raise NotGguf(f"{what} is an array of type {kind}, which no GGUF array has.")
        size = SCALAR_TYPES[kind].size
        if count > MAX_KEPT_ARRAY_ITEMS:
            self.skip(count * size, what)
            return count, None
        return count, tuple(self.scalar(kind, what) for _ in range(count))

    def _skip_strings(self, count: int, what: str) -> None:
        self.need(count * 8, what)  # each has at least its length: bounds the loop before it starts
        data, pos, end = self.data, self.pos, len(self.data)
        unpack = _U64.unpack_from
        for _ in range(count):
            if pos + 8 <= end:
                (n_bytes,) = unpack(data, pos)
                if pos + 8 + n_bytes <= end:
                    pos += 8 + n_bytes
                    continue
            self.pos = pos
            self.skip(self.u64(what), what)
            pos = self.pos
        self.pos = pos
