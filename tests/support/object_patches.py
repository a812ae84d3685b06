"""Patches of the object with the sites: what is wished for, how it is asked for, and what should come of it.

    patched = patch_object(original, tmp_path, *options({"alpha": "NULL"}))
    assert_meant(original, patched, {"alpha": "NULL"}, "lutomirski")

What should come of it is worked out from what objdump shows of the original.
"""

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from tests.support import disassembly, elf_object
from tests.support.elf_object import Object
from tests.support.tool import digest, succeed, validate

R_X86_64_NONE, R_X86_64_64, R_X86_64_PLT32 = 0, 1, 4
RETURN0 = "__static_call_return0"
NOP, XOR, RET, RET_TRAMPOLINE = (
    bytes.fromhex(code) for code in ("0f1f440000", "2e2e2e31c0", "c3cccccccc", "c3cc909090")
)
JMP = b"\xe9" + bytes(4)
FORCE = ("--force", "null-returns-value")


Wish = dict[str, str]
WISHES: Final[Mapping[str, Wish]] = MappingProxyType(
    {
        "here": {"alpha": "plus_one", "gamma": "plus_one"},
        "local": {"alpha": "plus_two"},
        "known": {"alpha": "plus_three"},
        "unknown": {"alpha": "plus_four"},
        "null": {"alpha": "NULL"},
        "return0": {"alpha": "RET0"},
        "from-null": {"beta": "plus_two"},
        "from-null-to-unknown": {"beta": "plus_four"},
        "from-null-to-return0": {"beta": "RET0"},
        "from-return0": {"gamma": "plus_three"},
        "from-return0-to-null": {"gamma": "NULL"},
        "all": {"alpha": "plus_four", "beta": "plus_four", "gamma": "plus_two"},
        "all-otherwise": {"alpha": "NULL", "beta": "RET0", "gamma": "plus_one"},
    }
)


def options(wishes: Wish) -> list[str]:
    """What asks the tool for some wishes."""
    options = [f"--set={key}={target}" for key, target in wishes.items()]
    return [*options, *FORCE] if "NULL" in wishes.values() else options


def patch_object(original: Path, folder: Path, *options: str | Path) -> Path:
    """Patch an object, hold it against its edits file, have it verified and turned back."""
    output, edits, back = folder / "patched.o", folder / "edits.json", folder / "back.o"
    succeed("patch", original, "-o", output, "--edits", edits, *options)
    document = json.loads(edits.read_text())
    validate(document, "edits")
    assert (document["original_sha256"], document["patched_sha256"]) == (digest(original), digest(output))
    assert {edit["address"] for edit in document["edits"]} <= {None}
    assert _applied(original.read_bytes(), document["edits"]) == output.read_bytes()
    assert succeed("verify", original, output).startswith("verified: ")
    succeed("revert", output, "--edits", edits, "-o", back)
    assert back.read_bytes() == original.read_bytes()
    return output


def _applied(data: bytes, edits: Sequence[Mapping[str, Any]]) -> bytes:
    pieces, at = [], 0
    for edit in edits:
        start, old = edit["file_offset"], bytes.fromhex(edit["old"])
        assert at <= start
        assert data[start : start + len(old)] == old
        pieces += [data[at:start], bytes.fromhex(edit["new"])]
        at = start + len(old)
    return b"".join([*pieces, data[at:]])


# ---- what should be there, worked out from what objdump shows of the original ----


class Content(NamedTuple):
    """All that a linker makes anything of: relocations by section and place, and the sections' bytes."""

    relocations: dict[tuple[int, int], tuple[int, str, int]]
    code: dict[int, bytes]


def content_of(elf: Object) -> Content:
    """What an object comes to."""
    relocations = {
        (table.info, entry.offset): (entry.type, elf.symbols[entry.symbol].name, entry.addend)
        for table in _tables(elf)
        for entry in elf.relocations(table)
        if entry.type != R_X86_64_NONE
    }
    # Tables of symbols, names and relocations are judged by what they say.
    tables = (elf_object.SHT_SYMTAB, elf_object.SHT_STRTAB, elf_object.SHT_RELA, elf_object.SHT_SYMTAB_SHNDX)
    return Content(relocations, {s.number: s.content for s in elf.sections if s.type not in tables})


def _expected(path: Path, wishes: Wish, policy: str) -> Content:
    elf = elf_object.read(path)
    relocations, code = content_of(elf)
    code = {number: bytes(content) for number, content in code.items()}
    places = {symbol.name: (symbol.section, symbol.value) for symbol in elf.symbols}
    defined = {symbol.name for symbol in elf.symbols if symbol.section}

    def put(place: tuple[int, int], data: bytes, field: int, symbol: str, kind: int) -> None:
        """So many bytes at a place, and the relocation of its field, none for NULL and the like."""
        (section, at), addend = place, -4
        if kind == R_X86_64_64:
            addend = 0
        code[section] = code[section][:at] + data + code[section][at + len(data) :]
        old = relocations.pop((section, at + field), None)
        if symbol:
            # What is defined elsewhere is reached as in a shared object.
            keeps = old and (kind == R_X86_64_64 or symbol in defined)
            relocations[section, at + field] = (old[0] if old and keeps else kind, symbol, addend)

    for key, target in wishes.items():
        function = {"NULL": "", "RET0": RETURN0}.get(target, target)
        put(places[f"__SCK__{key}"], bytes(8), 0, function, R_X86_64_64)
        put(places[f"__SCT__{key}"], JMP if function else RET_TRAMPOLINE, 1, function, R_X86_64_PLT32)
        for site in disassembly.sites(path):
            alignment = elf.sections[site.section].alignment
            if site.key != key or disassembly.verdict(site, policy, alignment) != "direct":
                continue
            data, prefixes = site.code, site.code[: site.prefixes]
            if not site.tail and target in ("NULL", "RET0"):
                data, function = prefixes + (NOP if target == "NULL" else XOR), ""
            elif target == "NULL":
                if site.form == "jcc":
                    continue  # there is no return that it could lead to
                data = RET
            put((site.section, site.offset), data, len(site.code) - 4, function, R_X86_64_PLT32)
            function = {"NULL": "", "RET0": RETURN0}.get(target, target)
    return Content(relocations, code)


def assert_meant(original: Path, patched: Path, wishes: Wish, policy: str) -> None:
    """See that a patched object has what should be there, and nothing else."""
    before, after = elf_object.read(original), elf_object.read(patched)
    found, expected = content_of(after), _expected(original, wishes, policy)
    assert found.relocations == expected.relocations
    count_before = len(before.sections)
    assert {number: code for number, code in found.code.items() if number < count_before} == expected.code
    assert after.symbols[: len(before.symbols)] == before.symbols
    named = {symbol.name for symbol in before.symbols}
    targets = sorted({RETURN0 if target == "RET0" else target for target in wishes.values()} - named - {"NULL"})
    added = [elf_object.Symbol(target, 0, elf_object.STB_GLOBAL, 0, 0, 0, 0) for target in targets]
    assert after.symbols[len(before.symbols) :] == added
    if not added and len(entries_of(before)) == len(entries_of(after)):
        assert patched.stat().st_size == original.stat().st_size


def entries_of(elf: Object) -> list[elf_object.Relocation]:
    """All relocations, those of no effect included."""
    return [entry for table in _tables(elf) for entry in elf.relocations(table)]


def _tables(elf: Object) -> list[elf_object.Section]:
    return [section for section in elf.sections if section.type == elf_object.SHT_RELA]


def complaints(path: Path) -> str:
    """What readelf finds wrong with an object."""
    done = subprocess.run(["readelf", "-aW", path], capture_output=True, text=True, check=True)
    return done.stderr + "".join(line for line in done.stdout.splitlines() if "arning" in line or "rror" in line)
