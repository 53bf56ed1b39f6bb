"""Files of torch.save, opened without running, or believing, what is in them.

`weights_only` alone lets a file of one kilobyte claim all memory: by calling bytearray with a huge
number, or by weights that unpack to a thousand times their size. Here nothing but what tensors are
made of may be called, and weights are mapped from the file, where nothing is packed.
"""

import pickletools
import re
from io import BytesIO
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import torch

# The globals of a plain state dict's or Lightning checkpoint's pickle, as "module name".
KNOWN = re.compile(
    r"collections OrderedDict|torch (Size|device|[A-Z]\w+Storage|bool|b?float\d+|u?int\d+)"
    r"|torch\.storage (UntypedStorage|TypedStorage)|torch\.serialization _get_layout"
    r"|torch\._utils _rebuild_(tensor|tensor_v2|tensor_v3|parameter)"
    r"|torch\.nn\.parameter Parameter"
)
OLD_PICKLES = 5  # a file of torch < 1.6: three of its format, the content, and its tensors' names


def load(path: Path) -> dict[Any, Any]:
    """The content of a file of torch.save; its tensors are on the CPU.

    Raises: almost anything, where the file is damaged or holds more than tensors and plain values.
    """
    with open(path, "rb") as file:
        packed = file.read(4) == b"PK\3\4"
        file.seek(0)
        if packed:
            reader = torch._C.PyTorchFileReader(str(path))
            size = reader.get_record_size("data.pkl")
            if size > path.stat().st_size:
                raise ValueError("its description is packed; torch packs nothing")
            _refuse_unknown(BytesIO(reader.get_record("data.pkl")))
        else:
            with mmap(file.fileno(), 0, access=ACCESS_READ) as whole:  # reads no more than is there
                for _ in range(OLD_PICKLES):
                    _refuse_unknown(whole)
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=packed)
    if not isinstance(content, dict):
        raise ValueError(f"it holds {type(content).__name__}, not a dictionary")
    return content


def _refuse_unknown(pickled: Any) -> None:
    """Reads a pickle up to its end, without doing what it says.

    Raises: ValueError: it would call something else than `KNOWN`.
    """
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name == "GLOBAL" and not KNOWN.fullmatch(str(argument)):
            raise ValueError(f"it calls {str(argument).replace(' ', '.')}; only tensors are read")
