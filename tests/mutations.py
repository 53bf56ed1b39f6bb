"""Damage to files: of bytes, and of what the bytes mean. All of it drawn from a generator."""

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import numpy as np

Rng = np.random.Generator
Mutator = Callable[[Rng, Sequence[bytes]], bytes]  # from whole files to a damaged one

# Numbers and texts on which readers have come to grief.
INTEGERS = (0, 1, 2, 3, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1)
INTEGERS += (2**40, 2**60, 2**63 - 1, 2**63, 2**64 - 1)
TEXTS = (
    "",
    ".",
    "..",
    "../../etc/passwd",
    "/etc/passwd",
    "a\0b",
    "\x1b[2J\x1b[31m",
    "a\nb",
    "\ud800",
)
TEXTS += ("[/x]", "${oc.env:HOME}", "&a [*a, *a]", "$\\frac$", "x" * 5000, "0", "nan", "\u202etxt")
HOSTILE: tuple[Any, ...] = (
    None,
    True,
    -1,
    0.5,
    1e308,
    float("nan"),
    float("inf"),
    -(2**63),
    10**30,
)
HOSTILE += (*INTEGERS, *TEXTS, [], {}, [[]], [None], {"": None})


def pick(rng: Rng, choices: Sequence[Any]) -> Any:
    return choices[int(rng.integers(len(choices)))]


def span(rng: Rng, length: int) -> tuple[int, int]:
    """Where a part of so many bytes starts and stops: short parts are as likely as long ones."""
    size = int(length ** rng.random())
    start = int(rng.integers(length - size + 1)) if length else 0
    return start, start + size


def damage(rng: Rng, seeds: Sequence[bytes]) -> bytes:
    """One to eight damages to the bytes of a file, wherever they fall."""
    data = bytearray(pick(rng, seeds))
    for _ in range(1 + int(rng.integers(8)) // int(rng.integers(1, 4))):
        _damage_once(rng, data, seeds)
    return bytes(data)


def _damage_once(rng: Rng, data: bytearray, seeds: Sequence[bytes]) -> None:
    start, stop = span(rng, len(data))
    # Headers, which decide most, come first in files, or last.
    if rng.random() < 0.5 and len(data) > 200:
        shift = int(rng.integers(200)) if rng.random() < 0.7 else len(data) - int(rng.integers(200))
        start, stop = min(shift, len(data)), min(shift + stop - start, len(data))
    match int(rng.integers(10)):
        case 0 if data:
            data[min(start, len(data) - 1)] ^= 1 << int(rng.integers(8))
        case 1:
            data[start:stop] = bytes(stop - start)
        case 2:
            data[start:stop] = b"\xff" * (stop - start)
        case 3:
            del data[start:]
        case 4:
            del data[start:stop]
        case 5 if stop - start < 100_000:
            data[start:start] = data[start:stop] * int(rng.integers(1, 4))
        case 6:  # splice
            other = pick(rng, seeds)
            a, b = span(rng, len(other))
            data[start:stop] = other[a:b]
        case 7:  # an integer blown up
            width = pick(rng, (2, 4, 8))
            value = pick(rng, INTEGERS) % 256**width
            data[start : start + width] = value.to_bytes(width, pick(rng, ("little", "big")))
        case 8:
            data[start:start] = rng.bytes(int(rng.integers(1, 64)))
        case _:
            text = str(pick(rng, INTEGERS)) if rng.random() < 0.5 else pick(rng, TEXTS)
            data[start : start + len(text) // 2] = text.encode(errors="surrogatepass")


def hurt(rng: Rng, tree: Any) -> Any:
    """A structure of dictionaries, lists and plain values, with one to three parts changed."""
    box = [deepcopy(tree)]
    for _ in range(int(rng.integers(1, 4))):
        holder: Any = box
        key: Any = 0
        while rng.random() < 0.85:
            node = holder[key]
            if isinstance(node, dict) and node:
                holder, key = node, pick(rng, list(node))
            elif isinstance(node, list) and node:
                holder, key = node, int(rng.integers(len(node)))
            else:
                break
        match int(rng.integers(5)):
            case 0 if holder is not box:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[pick(rng, TEXTS)] = holder[key]
            case 2 if isinstance(holder[key], list):
                holder[key] = holder[key] * int(rng.integers(2, 5))
            case 3:
                holder[key] = deepcopy(pick(rng, [tree, *_parts(tree)]))
            case _:
                holder[key] = deepcopy(pick(rng, HOSTILE))
    return box[0]


def _parts(tree: Any) -> list[Any]:
    return (
        list(tree.values())
        if isinstance(tree, dict)
        else list(tree)
        if isinstance(tree, list)
        else []
    )


def damage_json(rng: Rng, seeds: Sequence[bytes]) -> bytes:
    text = json.dumps(hurt(rng, json.loads(pick(rng, seeds))))
    if rng.random() < 0.1:  # so deep that a reader by recursion falls
        depth = int(rng.integers(1000, 100_000))
        text = text.replace("null", "[" * depth + "]" * depth, 1)
    return text.encode(errors="surrogatepass")


def damage_safetensors(rng: Rng, seeds: Sequence[bytes]) -> bytes:
    """The header: what it says of tensors and of the model, and how long it says that it is."""
    data = pick(rng, seeds)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    if rng.random() < 0.5 and "about" in header.get("__metadata__", {}):
        about = hurt(rng, json.loads(header["__metadata__"]["about"]))
        header["__metadata__"]["about"] = json.dumps(about)
    else:
        header = hurt(rng, header)
    text = json.dumps(header).encode(errors="surrogatepass")
    claimed = pick(rng, INTEGERS) if rng.random() < 0.1 else len(text)
    return struct.pack("<Q", claimed) + text + data[8 + length :]


def damage_zip(rng: Rng, seeds: Sequence[bytes]) -> bytes:
    """One member, then a sound zip around it: stored or packed, once or twice, under any name."""
    result = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(pick(rng, seeds))) as there,
        zipfile.ZipFile(result, "w") as out,
    ):
        members = there.infolist()
        victim = pick(rng, [m for m in members if m.filename.endswith((".pkl", ".npy"))] + members)
        for member in members:
            content, name = there.read(member), member.filename
            if member is victim:
                match int(rng.integers(8)):
                    case 0:
                        continue
                    case 1:
                        name = pick(rng, TEXTS).replace("\ud800", "") or "x"
                    case 2:
                        content = b"\x93NUMPY\x01\x00v\x00" + content[10:]
                    case _:
                        content = damage(rng, [content])
            packing = pick(rng, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
            out.writestr(zipfile.ZipInfo(name), content, packing)
    return result.getvalue()


def damage_png(rng: Rng, seeds: Sequence[bytes]) -> bytes:
    """One chunk, with its checksum made right again."""
    data = pick(rng, [seed for seed in seeds if seed.startswith(b"\x89PNG")])
    at, chunks = 8, []
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    victim = int(rng.integers(len(chunks)))
    kind, content = chunks[victim]
    match int(rng.integers(5)):
        case 0:
            chunks.insert(int(rng.integers(len(chunks) + 1)), (kind, content))
        case 1:
            bomb = zlib.compress(bytes(int(rng.integers(2**24))))
            chunks.insert(1, (pick(rng, (b"iCCP", b"zTXt", b"iTXt", b"IDAT")), b"x\0\0" + bomb))
        case 2:
            del chunks[victim]
        case _:
            chunks[victim] = (kind, damage(rng, [content]))
    result = data[:8]
    for kind, content in chunks:
        check = zlib.crc32(kind + content)
        result += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)
    return result


TAR_FIELDS = {"name": (0, 100), "mode": (100, 8), "size": (124, 12), "mtime": (136, 12)}
TAR_FIELDS |= {"type": (156, 1), "link": (157, 100), "magic": (257, 8), "prefix": (345, 155)}


def damage_tar(rng: Rng, seeds: Sequence[bytes]) -> bytes:
    """One field of some headers, with their checksums made right again."""
    data = bytearray(pick(rng, seeds))
    headers = [at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"]
    for _ in range(int(rng.integers(1, 5))):
        at = pick(rng, headers)
        field = pick(rng, list(TAR_FIELDS))
        offset, width = TAR_FIELDS[field]
        value = {
            "mode": b"%07o" % int(rng.integers(2**12)),
            "size": pick(rng, (b"%011o" % (pick(rng, INTEGERS) % 8**11), b"\x80" + rng.bytes(11))),
            "mtime": pick(rng, (b"77777777777", b"\x80" + rng.bytes(11), b"\xff" * 12)),
            "type": pick(
                rng, (b"0", b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"x", b"g", b"L", b"S")
            ),
        }.get(field, pick(rng, TEXTS).encode(errors="surrogatepass"))
        data[at + offset : at + offset + width] = value[:width].ljust(width, b"\0")
        if rng.random() < 0.9:
            data[at + 148 : at + 156] = b" " * 8
            data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    return bytes(data) if rng.random() < 0.8 else damage(rng, [bytes(data)])


def damage_lines(rng: Rng, seeds: Sequence[bytes]) -> bytes:
    """Lines of text: dropped, doubled, swapped for hostile ones."""
    lines = pick(rng, seeds).decode().split("\n")
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(len(lines)))
        match int(rng.integers(5)):
            case 0:
                lines[at:at] = [lines[at]] * int(rng.integers(1, 3))
            case 1 if len(lines) > 1:
                del lines[at]
            case 2:
                lines[at] += pick(rng, TEXTS)
            case 3:
                key, mark, _ = lines[at].partition(":")
                value = pick(rng, (*TEXTS, "!!python/object/apply:os.getcwd []", "[" * 3000, "*a"))
                lines[at] = f"{key}{mark} {value}"
            case _:
                lines.insert(at, pick(rng, TEXTS))
    return "\n".join(lines).encode(errors="surrogatepass")
