"""SBD's masks: GTcls.Segmentation of a MATLAB 5 file.

Read here rather than by scipy, which some damaged files crash along with the interpreter, and
others have claim any amount of memory.
Source: The MathWorks, MAT-File Format, "Level 5 MAT-File Format".
"""

import struct
import zlib
from collections.abc import Iterator

import numpy as np

HEADER = 128  # bytes, of which the last two tell the byte order
# Kinds of element, and classes of matrix.
UINT8, MATRIX, COMPRESSED = 2, 14, 15
STRUCT_CLASS, UINT8_CLASS = 2, 9
MOST = 2**27  # bytes of an unpacked element: no mask within fcn.data.reading.MAX_PIXELS has more


def segmentation(data: bytes) -> np.ndarray:
    """The labels in a file's bytes, uint8 (H, W).

    Raises: ValueError, struct.error, zlib.error: damaged, or of another kind.
    """
    order = {b"IM": "<", b"MI": ">"}.get(data[HEADER - 2 : HEADER])
    if order is None:
        raise ValueError("not a MATLAB 5 file")
    for kind, content in _elements(memoryview(data)[HEADER:], order):
        if kind == COMPRESSED:
            unpacked = zlib.decompressobj().decompress(content, MOST)
            kind, content = next(_elements(memoryview(unpacked), order), (0, content))
        if kind == MATRIX:
            name, matrix_class, _, parts = _matrix(content, order)
            if name == b"GTcls" and matrix_class == STRUCT_CLASS:
                return _labels(_field(parts, b"Segmentation", order), order)
    raise ValueError("no GTcls in it")


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """The kind and content of each element; those within them stay as they are."""
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from(order + "II", data, at)
        start, padding = at + 8, 0 if kind == COMPRESSED else -size % 8
        if kind >> 16:  # up to four bytes share the tag's own eight
            kind, size, start = kind & 0xFFFF, kind >> 16, at + 4
            padding = 4 - size
        if padding < 0 or start + size > len(data):
            raise ValueError("cut short")
        yield kind, data[start : start + size]
        at = start + size + padding


def _matrix(
    content: memoryview, order: str
) -> tuple[bytes, int, tuple[int, ...], list[tuple[int, memoryview]]]:
    """Its name, class, dimensions, and the elements after these."""
    flags, sizes, name, *parts = _elements(content, order)
    matrix_class = struct.unpack_from(order + "I", flags[1])[0] & 255
    dimensions = struct.unpack(f"{order}{len(sizes[1]) // 4}i", sizes[1])
    return bytes(name[1]), matrix_class, dimensions, parts


def _field(parts: list[tuple[int, memoryview]], name: bytes, order: str) -> memoryview:
    """A field's matrix in a structure: after the names' length and the names come their values."""
    (_, length), (_, names), *values = parts
    (width,) = struct.unpack(order + "i", length)
    known = [bytes(names[i : i + width]).rstrip(b"\0") for i in range(0, len(names), max(width, 1))]
    if name not in known or len(values) != len(known) or values[known.index(name)][0] != MATRIX:
        raise ValueError(f"no GTcls.{name.decode()} in it")
    return values[known.index(name)][1]


def _labels(content: memoryview, order: str) -> np.ndarray:
    _, matrix_class, dimensions, parts = _matrix(content, order)
    if matrix_class != UINT8_CLASS or len(dimensions) != 2 or [k for k, _ in parts] != [UINT8]:
        raise ValueError("GTcls.Segmentation must be 2-D uint8")
    height, width = dimensions
    columns = np.frombuffer(parts[0][1], np.uint8)
    if min(dimensions) < 1 or len(columns) != height * width:
        raise ValueError(f"{len(columns)} labels, but {width} x {height} pixels")
    return np.ascontiguousarray(columns.reshape(width, height).T)
