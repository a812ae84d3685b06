"""BTF by hand, record by record, and into a file.

    btf = BtfBuilder()
    number = btf.add(INT, "int", 4, SIGNED | 32)
    btf.function("f", number, btf.add(PTR, "", number))
    path = with_sections(program, folder, {".BTF": bytes(btf)})

The third word is a size or a type's number. Source: the kernel's documentation, bpf/btf.rst.
"""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.support.toolchain import TIMEOUT_SECONDS

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, PROTO, VAR = range(1, 15)
DATASEC, FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = range(15, 20)
SIGNED, BOOLEAN = 1 << 24, 4 << 24
_HEADER = struct.Struct("<HBBIIIII")


class BtfBuilder:
    """Records and strings; with a base, numbers and strings go on where those of the base end."""

    def __init__(self, base: BtfBuilder | None = None) -> None:
        self.next: int = base.next if base else 1
        self._first_string = base.end_of_strings if base else 0
        self._types = b""
        self._strings = b"" if base else b"\0"

    @property
    def end_of_strings(self) -> int:
        return self._first_string + len(self._strings)

    def string(self, text: str) -> int:
        if not text:
            return 0
        self._strings += text.encode() + b"\0"
        return self.end_of_strings - len(text) - 1

    def add(
        self, kind: int, name: str | int = "", third: int = 0, *rest: int, count: int = 0, flag: bool = False
    ) -> int:
        """Append a record, the words behind its first three as they are; returns its number."""
        info = kind << 24 | count | flag << 31
        name = self.string(name) if isinstance(name, str) else name
        words = [name, info, third, *rest]
        self._types += struct.pack(f"<{len(words)}I", *(word & 0xFFFFFFFF for word in words))
        self.next += 1
        return self.next - 1

    def prototype(self, result: int, *parameters: int) -> int:
        rest = [word for type_ in parameters for word in (0, type_)]
        return self.add(PROTO, "", result, *rest, count=len(parameters))

    def function(self, name: str, result: int, *parameters: int) -> int:
        return self.add(FUNC, name, self.prototype(result, *parameters))

    def __bytes__(self) -> bytes:
        header = _HEADER.pack(0xEB9F, 1, 0, 24, 0, len(self._types), len(self._types), len(self._strings))
        return header + self._types + self._strings


def with_sections(path: Path, folder: Path, sections: Mapping[str, bytes]) -> Path:
    """A copy of a file without debug data that has these sections, by objcopy."""
    target = folder / f"{path.name}.typed"
    options: list[str | Path] = []
    for number, (name, content) in enumerate(sections.items()):
        (folder / f"section{number}").write_bytes(content)
        options += ["--add-section", f"{name}={folder / f'section{number}'}"]
    command = ["objcopy", "--strip-debug", *options, path, target]
    subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT_SECONDS)
    return target
