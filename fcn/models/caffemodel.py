"""Caffe's weight files, read without Caffe: a .caffemodel's layers and their blobs.

The file is one message in protobuf's wire format, its fields numbered as in BVLC/caffe's
src/caffe/proto/caffe.proto. It is read here rather than by protobuf's library, which would hold
each blob twice: an FCN is half a gigabyte, and three quarters of that one blob (fc6).
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from fcn.config import UserError

# protobuf's wire types.
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
# NetParameter's fields that hold layers -> numbers of the name and the blobs within a layer.
LAYERS = {100: (1, 7), 2: (4, 6)}  # layer (LayerParameter), layers (V1LayerParameter, before 2015)
# BlobProto's fields; the four of before 2015 (num, channels, height, width) are 1 to 4.
DATA, SHAPE, DOUBLE_DATA = 5, 7, 8
MAX_AXES = 32  # of a blob (Caffe's kMaxBlobAxes)


class CaffeError(UserError, ValueError):
    """A file that is no caffemodel, or a net that is none of those an FCN here can be."""


def read_caffemodel(path: str | Path) -> dict[str, list[Tensor]]:
    """The blobs of every layer that has any, by layer name, in the file's order.

    Returns: float32, in their own shapes; of files of before 2015, in the four dimensions stored.
    Raises: CaffeError: no such file, cut short, damaged or foreign; says where.
    """
    if not Path(path).is_file():
        raise CaffeError(f"{path}: no such caffemodel")
    blobs: dict[str, list[Tensor]] = {}
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        for number, wire, length in _fields(file, size):
            if wire != BYTES or number not in LAYERS:
                continue
            name, spans = _layer(file, file.tell() + length, *LAYERS[number])
            if not spans:
                continue
            if name in blobs:
                raise CaffeError(f"{path}: two layers with weights are called {name}")
            blobs[name] = [_blob(file, *span, f"{path}: layer {name}") for span in spans]
    if not blobs:
        raise CaffeError(f"{path}: zero layers with weights in it; is it a .caffemodel?")
    return blobs


def _fields(file: BinaryIO, end: int) -> Iterator[tuple[int, int, int]]:
    """The fields of the message that reaches from where the file stands to `end`.

    Yields: number, wire type, and the value (of a VARINT) or the length of the content, at whose
    start the file stands. It may be left anywhere: the next field is found all the same.
    """
    while (start := file.tell()) < end:
        tag = _varint(file)
        number, wire = tag >> 3, tag & 7
        value = {FIXED64: 8, FIXED32: 4}.get(wire) or _varint(file)
        following = file.tell() + (0 if wire == VARINT else value)
        if number == 0 or wire not in (VARINT, FIXED64, BYTES, FIXED32) or following > end:
            raise CaffeError(f"{file.name}: cut short, damaged or no .caffemodel, at byte {start}")
        yield number, wire, value
        file.seek(following)


def _varint(file: BinaryIO) -> int:
    """An integer in seven bits a byte, the lowest first; the last byte's top bit is clear."""
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise CaffeError(f"{file.name}: cut short, at byte {file.tell()}")
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
    raise CaffeError(f"{file.name}: damaged or no .caffemodel, at byte {file.tell()}")


def _layer(file: BinaryIO, end: int, names: int, blobs: int) -> tuple[str, list[tuple[int, int]]]:
    """A layer's name, and from where to where in the file each of its blobs reaches."""
    name, spans = "", []
    for number, wire, length in _fields(file, end):
        if wire == BYTES and number == names:
            name = file.read(length).decode(errors="replace")
        elif wire == BYTES and number == blobs:
            spans.append((file.tell(), file.tell() + length))
    return name, spans


def _blob(file: BinaryIO, start: int, end: int, where: str) -> Tensor:
    file.seek(start)
    dims, legacy, data, doubles = None, [0, 0, 0, 0], bytearray(), bytearray()
    for number, wire, value in _fields(file, end):
        if wire == VARINT and 1 <= number <= 4:
            legacy[number - 1] = value
        elif wire == BYTES and number == SHAPE:
            dims = _dims(file, file.tell() + value)
        # Packed values come as one piece or several, unpacked ones as many of 4 or 8 bytes.
        elif wire in (BYTES, FIXED32) and number == DATA:
            _append(data, file, value)
        elif wire in (BYTES, FIXED64) and number == DOUBLE_DATA:
            _append(doubles, file, value)
    shape = legacy if dims is None else dims
    raw, kind = (doubles, "<f8") if doubles else (data, "<f4")
    count, rest = divmod(len(raw), int(kind[-1]))
    if rest or not count or count != math.prod(shape) or len(shape) > MAX_AXES:
        raise CaffeError(f"{where}: a blob of shape {tuple(shape)} holds {count} values")
    with np.errstate(over="ignore"):  # what float32 cannot hold is refused with the infinite
        return torch.from_numpy(np.frombuffer(raw, kind).astype(np.float32, copy=False)).view(shape)


def _dims(file: BinaryIO, end: int) -> list[int]:
    """BlobShape: its one field is repeated, packed or not."""
    dims = []
    for number, wire, value in _fields(file, end):
        if number == 1 and wire == VARINT:
            dims.append(value)
        elif number == 1 and wire == BYTES:
            stop = file.tell() + value
            while file.tell() < stop and len(dims) <= MAX_AXES:
                dims.append(_varint(file))
        if len(dims) > MAX_AXES:
            raise CaffeError(f"{file.name}: damaged, a blob of over {MAX_AXES} axes")
    return dims


def _append(data: bytearray, file: BinaryIO, length: int) -> None:
    start = len(data)
    data.extend(bytes(length))
    file.readinto(memoryview(data)[start:])  # type: ignore[attr-defined]
