"""The .caffemodel reader, on files written byte by byte."""

import numpy as np
import pytest
import torch

from fcn.config import UserError
from fcn.models.caffemodel import CaffeError, read_caffemodel
from tests.caffe_files import (
    Layers,
    blob,
    caffemodel,
    floats,
    legacy_blob,
    message,
    plain,
    save,
    shape,
    v1_caffemodel,
    varint,
)


def chunked(array: np.ndarray) -> bytes:
    raw = floats(array)
    return message(5, raw[:8]) + shape(array) + message(5, raw[8:])


def unpacked(array: np.ndarray) -> bytes:
    dims = b"".join(message(1, size) for size in array.shape)
    values = b"".join(varint(5 << 3 | 5) + floats(value) for value in array.ravel())
    return message(7, dims) + values


def doubles(array: np.ndarray) -> bytes:
    return message(8, array.astype("<f8").tobytes()) + shape(array)


def with_more(array: np.ndarray) -> bytes:
    """Gradients, and fields that no Caffe knows."""
    later = varint(200 << 3 | 1) + bytes(8) + message(201, "x") + message(202, 2**63)
    return message(6, floats(array)) + blob(array) + later


SMALL: Layers = {
    "one": ("Convolution", [np.random.default_rng(0).normal(size=(2, 3, 3, 3)), np.arange(2.0)]),
    "two": ("Scale", [np.array(0.5)]),
}


@pytest.mark.parametrize("encode", [blob, chunked, unpacked, doubles, with_more])
def test_every_form_of_a_blob_reads_the_same(tmp_path, encode) -> None:
    read = read_caffemodel(save(tmp_path, caffemodel(SMALL, encode)))
    assert list(read) == list(SMALL)
    for name, blobs in plain(SMALL).items():
        for tensor, array in zip(read[name], blobs, strict=True):
            assert tensor.dtype == torch.float32
            np.testing.assert_array_equal(tensor.numpy(), array, strict=True)


def test_old_files_read_the_same_in_four_sizes(tmp_path) -> None:
    for content in (v1_caffemodel({"one": SMALL["one"]}), caffemodel(SMALL, legacy_blob)):
        read = read_caffemodel(save(tmp_path, content))["one"]
        assert [tuple(tensor.shape) for tensor in read] == [(2, 3, 3, 3), (1, 1, 1, 2)]
        np.testing.assert_array_equal(read[0].numpy(), plain(SMALL)["one"][0])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "zero layers with weights"),
        (b'name: "FCN"\nlayer { name: "data" }\n', "no .caffemodel"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "no .caffemodel"),
        (bytes(1000), "no .caffemodel"),
        (message(1, "net"), "zero layers with weights"),
        (caffemodel({"empty": ("ReLU", [])}), "zero layers with weights"),
        (caffemodel(SMALL)[:-3], "cut short"),
        (caffemodel(SMALL)[:60], "cut short"),
        (caffemodel(SMALL) * 2, "two layers with weights are called one"),
        (caffemodel(SMALL, lambda a: message(5, floats(a))), r"layer one: .*\(0, 0, 0, 0\)"),
        (caffemodel(SMALL, lambda a: shape(a)), "layer one: .*holds 0 values"),
        (caffemodel(SMALL, lambda a: message(5, floats(a)[:-4]) + shape(a)), "holds 53 values"),
        (caffemodel(SMALL, lambda a: message(5, floats(a)[:-1]) + shape(a)), "holds 53 values"),
        (caffemodel(SMALL, lambda a: message(5, floats(a)) + message(1, 2**64 - 1)), "layer one"),
    ],
)
def test_what_is_no_caffemodel_is_refused(tmp_path, content, reason) -> None:
    path = save(tmp_path, content)
    with pytest.raises(CaffeError, match=reason) as refusal:
        read_caffemodel(path)
    assert str(path) in str(refusal.value)
    assert isinstance(refusal.value, UserError)


def test_no_file_is_refused(tmp_path) -> None:
    with pytest.raises(CaffeError, match="no such caffemodel"):
        read_caffemodel(tmp_path / "none.caffemodel")
