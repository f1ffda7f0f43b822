"""Header of a safetensors file, examined before the library reads the tensors.

The library refuses offsets, shapes and types that do not fit the content, before it allocates
anything. It accepts a million empty tensors, which take minutes and a gigabyte.
"""

_LENGTH_BYTES = 8

MAX_HEADER_BYTES = 2**24
"""Length of the longest header that is read; the longest tokenizers take a few megabytes."""

MAX_TENSORS = 2**14
"""Largest number of tensors; a checkpoint of a hundred layers has less than half of that."""


def read_header(content: bytes) -> bytes:
    """Return the header of a safetensors file, a JSON object.

    Raises:
        ValueError: if it is longer than the file or than any header, or has too many tensors.
    """
    length = int.from_bytes(content[:_LENGTH_BYTES], "little")
    if length > min(len(content) - _LENGTH_BYTES, MAX_HEADER_BYTES):
        raise ValueError(f"its header of {length:,} bytes is too long")
    header = content[_LENGTH_BYTES : _LENGTH_BYTES + length]
    if (count := header.count(b"data_offsets")) > MAX_TENSORS:
        raise ValueError(f"its {count:,} tensors are too many: expected at most {MAX_TENSORS:,}")
    return header
