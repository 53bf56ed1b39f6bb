"""Arrays of .npz files that may come from anywhere."""

import math

import numpy as np

MOST = 2**30  # bytes of an array: a packed file may claim any number


def array(archive: np.lib.npyio.NpzFile, name: str, kind: str, axes: int) -> np.ndarray:
    """One array, once its header is known to claim no more than is there.

    Args: kind: of its dtype: "i" for integers, "U" for text. axes: their number.
    Raises: ValueError, KeyError and others: missing, damaged, of another kind, or too large.
    """
    assert archive.zip is not None
    about = archive.zip.getinfo(f"{name}.npy")
    with archive.zip.open(about) as member:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0
        shape, _, dtype = (read if version == (1, 0) else np.lib.format.read_array_header_2_0)(
            member
        )
    if (dtype.kind, len(shape)) != (kind, axes):
        raise ValueError(f"{name} is {len(shape)}-D {dtype}")
    if not math.prod(shape) * dtype.itemsize <= about.file_size <= MOST:
        raise ValueError(f"{name} claims shape {shape}")
    return archive[name]
