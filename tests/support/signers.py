"""Commands that sign, well or badly: what `patch --sign-with` is given, made of Python and nothing of the tool's.

command(folder, "module")            "python3 .../signer.py module"
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

# Each way is a function of the bytes of the file that gives the bytes to write.
_SOURCE = """
import struct, sys
MARK = b"~Module signature appended~\\n"
DER = b"\\x30\\x82" + struct.pack(">H", 300) + bytes(range(256)) + bytes(44)

def module(data, der=DER, kind=2, said=None):
    said = len(der) if said is None else said
    return data + der + struct.pack(">5B3xI", 0, 0, kind, 0, 0, said) + MARK

def image(data):
    data += bytes(-len(data) % 8)
    table = struct.pack("<IHH", 64, 0x200, 2) + b"another signature".ljust(56, b"\\0")
    (header,) = struct.unpack_from("<I", data, 60)
    data = bytearray(data)
    struct.pack_into("<II", data, header + 24 + 144, len(data), len(table))
    struct.pack_into("<I", data, header + 24 + 64, 0)
    data += table
    # Of all 16-bit words, with the carry; and the size.
    total = sum(struct.unpack("<%dH" % (len(data) // 2), data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    struct.pack_into("<I", data, header + 24 + 64, total + len(data))
    return bytes(data)

def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1:]

WAYS = {
    "module": module,
    "image": image,
    "another kind": lambda data: module(data, kind=1),
    "a size too large": lambda data: module(data, said=1 << 30),
    "a size too small": lambda data: module(data, said=303),
    "no der": lambda data: module(data, der=b"signature"),
    "nothing in it": lambda data: module(data, der=b""),
    "one byte more": lambda data: module(data + b"x"),
    "one byte flipped": lambda data: module(flipped(data, len(data) // 2)),
    "a signature before the signature": lambda data: module(module(data)),
    "cut": lambda data: data[:-1],
    "nothing left": lambda data: b"",
    "image with something behind": lambda data: image(data) + b"x" * 8,
    "image with a byte flipped": lambda data: image(flipped(data, len(data) // 2)),
    "image with a bad table": lambda data: image(data)[:-64] + bytes(64),
}
way, path = sys.argv[1:]
with open(path, "rb") as file:
    data = file.read()
with open(path, "wb") as file:
    file.write(WAYS[way](data))
"""


def command(folder: Path, way: str) -> str:
    """The command that signs in this way; its program lies in the folder."""
    program = folder / "signer.py"
    program.write_text(_SOURCE)
    return shlex.join([sys.executable, str(program), way])
