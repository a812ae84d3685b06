"""The proof of linked images: what it lets pass, and that it lets nothing else pass."""

from __future__ import annotations

import os
import random
import struct
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from staticcall.abi.static_call import NOP5, RET0_CS, RET0_DATA16, RET_SITE, RET_TRAMPOLINE
from staticcall.errors import InputError, MalformedError, StaticcallError, UnsupportedError, VerificationError
from staticcall.model.change import Edit, EditKind, Proof
from staticcall.model.form import Form
from staticcall.verify.compare import CHUNK
from staticcall.verify.decode import Code, make_decoder
from staticcall.verify.proof import prove
from staticcall.verify.second_reader import same_layout

SOURCES = Path(__file__).parent.parent / "fixtures" / "verify"
VARIANTS = {
    "exec": ["-no-pie"],
    "pie": ["-pie", "-fPIE"],
    "relr": ["-pie", "-fPIE", "-Wl,-z,pack-relative-relocs"],
    "old": ["-no-pie", "-DOLD_NAMES"],
}
KEYS = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta")
UNCHANGED = "1 1 1 1 9 1 1 1 0 0 1 1 9 9"


@dataclass(frozen=True)
class Program:
    """A built program: where its symbols and its loaded bytes are."""

    path: Path
    symbols: dict[str, int]
    loads: tuple[tuple[int, int, int], ...]
    addends: dict[int, int]  # slot -> file offset of the addend of its relocation

    def __getitem__(self, name: str) -> int:
        return self.symbols[name]

    def offset(self, address: int) -> int:
        return next(address - start + offset for start, size, offset in self.loads if 0 <= address - start < size)

    def slot(self, key: str) -> int:
        """The file offset of what holds the key's value."""
        return self.addends.get(self[f"__SCK__{key}"], self.offset(self[f"__SCK__{key}"]))

    def patched(self, changes: Sequence[tuple[int, bytes]]) -> Path:
        data = bytearray(self.path.read_bytes())
        for offset, new in changes:
            data[offset : offset + len(new)] = new
        return write(self.path.with_suffix(".patched"), data)


def write(path: Path, data: bytes | bytearray) -> Path:
    path.write_bytes(data)
    path.chmod(0o755)
    return path


def inspect(path: Path, names: Program | None = None) -> Program:
    with path.open("rb") as stream:
        elf = ELFFile(stream)
        symtab = elf.get_section_by_name(".symtab")
        found = symtab.iter_symbols() if isinstance(symtab, SymbolTableSection) else ()
        symbols = {symbol.name: symbol["st_value"] for symbol in found}
        loads = [s for s in elf.iter_segments() if s["p_type"] == "PT_LOAD"]
        sections = {section.name: section for section in elf.iter_sections()}
        table = sections["static_call_sites"]
        symbols |= {"table": table["sh_addr"], "table_end": table["sh_addr"] + table["sh_size"]}
        rela = sections.get(".rela.dyn")
        entries = struct.iter_unpack("<QQq", rela.data()) if rela else ()
        addends = {
            slot: rela["sh_offset"] + i * 24 + 16 for i, (slot, info, _) in enumerate(entries) if rela and info == 8
        }
        return Program(
            path,
            names.symbols if names else symbols,
            tuple((s["p_vaddr"], s["p_filesz"], s["p_offset"]) for s in loads),
            addends,
        )


Build = Callable[[str], Program]


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    folder = tmp_path_factory.mktemp("verify")

    @cache
    def make(variant: str) -> Program:
        path = folder / variant
        files = [str(SOURCES / name) for name in ("main.c", "sites.S")]
        subprocess.run(["gcc", "-O1", *VARIANTS[variant], "-o", str(path), *files], check=True)
        return inspect(path)

    return make


@pytest.fixture(params=["exec", "pie", "relr"])
def program(build: Build, request: pytest.FixtureRequest) -> Program:
    return build(request.param)


def run(path: Path) -> str:
    return subprocess.run([str(path)], check=True, capture_output=True, text=True).stdout.strip()


def branch(opcode: str, address: int, target: int) -> bytes:
    code = bytes.fromhex(opcode)
    return code + struct.pack("<i", target - (address + len(code) + 4))


def parse(p: Program, changes: str) -> list[tuple[int, bytes]]:
    """Read changes: `place=hex`, `place=opcode>target` for a branch, `key>target` for a slot; `+n` moves a place.

    Returns file offsets with the bytes to put there.
    """
    found = []
    for change in changes.split():
        place, _, code = change.partition("=")
        if not code:
            key, target = place.split(">")
            found.append((p.slot(key), struct.pack("<Q", p.symbols.get(target, 0))))
            continue
        name, _, distance = place.partition("+")
        address = p[name] + int(distance or 0)
        opcode, _, target = code.partition(">")
        found.append((p.offset(address), branch(opcode, address, p[target]) if target else bytes.fromhex(opcode)))
    return found


def bound(target: str) -> str:
    sites = {"call": "e8", "prefixed": "2ee8", "straddling": "e8", "tail": "e9", "jcc": "0f84"}
    return " ".join(f"site_{site}_alpha={opcode}>{target}" for site, opcode in sites.items())


def proves(p: Program, changes: str) -> tuple[Proof, str]:
    """Prove a patch and the way back; returns the proof and what the patched program prints."""
    patched = p.patched(parse(p, changes))
    proof = prove(p.path, patched)
    assert proof.compared == p.path.stat().st_size
    back = prove(patched, p.path)
    assert (back.trampolines, back.keys, back.changed_keys) == (proof.trampolines, proof.keys, proof.changed_keys)
    same_layout(p.path, patched)
    return proof, run(patched)


def refuses(p: Program, changes: str, message: str) -> None:
    patched = p.patched(parse(p, changes))
    with pytest.raises(VerificationError, match=message) as raised:
        prove(p.path, patched)
    assert raised.value.path == patched
    assert raised.value.offset is not None


def test_nothing_changed(program: Program) -> None:
    proof, output = proves(program, "")
    assert proof == Proof(program.path.stat().st_size, {}, 0, 0, ())
    assert output == UNCHANGED


def test_bound_sites(program: Program) -> None:
    proof, output = proves(program, bound("first"))
    assert proof.sites == {"call": 2, "prefixed_call": 1, "tail_jmp": 1, "jcc": 1}
    assert (proof.trampolines, proof.keys, proof.changed_keys) == (0, 0, ("alpha",))
    assert program.offset(program["site_straddling_alpha"]) % CHUNK == CHUNK - 3
    assert output == UNCHANGED


def test_retargeted_key(program: Program) -> None:
    proof, output = proves(program, f"{bound('second')} __SCT__alpha=e9>second alpha>second")
    assert (proof.trampolines, proof.keys) == (1, 1)
    assert output == "2 2 2 2 9 2 2 2 0 0 1 1 9 9"


def test_retargeted_by_trampoline_alone(program: Program) -> None:
    slots = "alpha>second epsilon>second zeta>second"
    proof, output = proves(program, f"__SCT__alpha=e9>second __SCT__zeta=e8>second {slots}")
    assert (proof.sites, proof.trampolines, proof.keys) == ({}, 2, 3)
    assert output == "2 2 2 2 9 2 2 2 0 0 2 2 9 9"


@pytest.mark.parametrize("xor", [RET0_CS, RET0_DATA16])
def test_forms_without_destination(program: Program, xor: bytes) -> None:
    changes = f"""
        site_call_beta={NOP5.hex()} site_prefixed_beta=2e{NOP5.hex()} site_tail_beta={RET_SITE.hex()}
        site_call_gamma={xor.hex()} site_tail_gamma=e9>__static_call_return0
        site_call_theta={NOP5.hex()} site_tail_delta=e9>__x86_return_thunk site_jcc_delta=0f84>__static_call_return
    """
    proof, output = proves(program, changes)
    assert proof.sites == {"nop": 3, "ret": 1, "ret0": 1, "tail_jmp": 2, "jcc": 1}
    assert output == UNCHANGED


def test_null_comes_and_goes_where_nothing_is_relocated(build: Build) -> None:
    changes = "__SCT__beta=e9>first site_tail_beta=e9>first beta>first"
    assert proves(build("exec"), changes)[0].changed_keys == ("beta",)
    changes = f"__SCT__gamma={RET_TRAMPOLINE.hex()} site_call_gamma={NOP5.hex()} gamma>NULL"
    assert proves(build("exec"), changes)[0].changed_keys == ("gamma",)


@pytest.mark.parametrize("variant", ["pie", "relr"])
def test_null_may_not_come_or_go_where_a_loader_relocates(build: Build, variant: str) -> None:
    message = "relocations did not follow"
    refuses(build(variant), "__SCT__beta=e9>first beta>first", message)
    refuses(build(variant), f"__SCT__gamma={RET_TRAMPOLINE.hex()} gamma>NULL", message)


def test_names_of_2018(build: Build) -> None:
    proof, output = proves(build("old"), bound("first"))
    assert proof.changed_keys == ("alpha",)
    assert output == UNCHANGED
    refuses(build("old"), "____static_call_tramp_zeta=e8>second", "zeta")


@pytest.mark.parametrize("variant", ["exec", "pie"])
def test_stripped(build: Build, variant: str, tmp_path: Path) -> None:
    full = build(variant)
    path = tmp_path / "stripped"
    subprocess.run(["strip", "-o", str(path), str(full.path)], check=True)
    program = inspect(path, full)
    proof, output = proves(program, f"{bound('second')} __SCT__alpha=e9>second alpha>second")
    assert proof.changed_keys == (f"{program['__SCK__alpha']:#x}",)
    assert output.startswith("2 2 2 2")
    refuses(program, f"{bound('second')} __SCT__alpha=e9>second", "trampoline")


def test_table_of_the_callers_choice(build: Build) -> None:
    program = build("exec")
    start, stop = program["table"], program["table_end"]
    patched = program.patched(parse(program, "site_call_alpha=e8>first"))
    assert prove(program.path, patched, table=(start, stop)).sites == {"call": 1}
    with pytest.raises(VerificationError, match="belongs to no site"):
        prove(program.path, patched, table=(start + 8 * 5, stop))
    with pytest.raises(MalformedError, match="table"):
        prove(program.path, patched, table=(start + 1, stop))


def test_table_between_symbols(build: Build, tmp_path: Path) -> None:
    full = build("exec")
    path = tmp_path / "renamed"
    marks = [("start", 0), ("stop", full["table_end"] - full["table"])]
    added = [f"--add-symbol=__{name}_static_call_sites=static_call_sites:{at}" for name, at in marks]
    subprocess.run(["objcopy", *added, str(full.path), str(path)], check=True)
    subprocess.run(["objcopy", "--rename-section=static_call_sites=.elsewhere", str(path)], check=True)
    assert proves(replace(full, path=path), bound("first"))[0].changed_keys == ("alpha",)


LINES = (SOURCES / "illegal.txt").read_text().splitlines()
ILLEGAL = {name.strip(): rest for name, *rest in (line.split(" | ") for line in LINES if line[0] != "#")}


@pytest.mark.parametrize("case", ILLEGAL)
def test_illegal(program: Program, case: str) -> None:
    refuses(program, *ILLEGAL[case])


def test_own_bytes_of_a_relocated_slot_stay(build: Build) -> None:
    refuses(build("pie"), "__SCK__zeta=01", "belongs to no site")


def test_size(program: Program) -> None:
    longer = write(program.path.with_suffix(".longer"), program.path.read_bytes() + b"\0")
    with pytest.raises(VerificationError, match="size changed"):
        prove(program.path, longer)


def test_every_flipped_byte_is_noticed(program: Program) -> None:
    data = program.path.read_bytes()
    chance = random.Random(5)  # noqa: S311 - reproducible, no secret
    places = {program.offset(program[f"__SCT__{key}"]) + i for key in KEYS for i in range(8)}
    places |= {program.slot(key) + i for key in KEYS for i in range(8)}
    places |= {program.offset(v) + i for n, v in program.symbols.items() if n.startswith("site_") for i in range(7)}
    places |= {chance.randrange(len(data)) for _ in range(100)} | {0, 4, 16, len(data) - 1}
    # Nothing but its slot says where a temporary trampoline leads, so there another function is legal.
    free = program.slot("epsilon")
    path = program.patched([])
    with path.open("r+b", buffering=0) as stream:
        for offset in sorted(places - set(range(free, free + 8))):
            os.pwrite(stream.fileno(), bytes([data[offset] ^ 0xFF]), offset)
            with pytest.raises(VerificationError):
                prove(program.path, path)
            os.pwrite(stream.fileno(), data[offset : offset + 1], offset)


def edits_of(p: Program) -> list[Edit]:
    """The edits that retarget alpha, with everything that an edit can say about itself."""
    data, second = p.path.read_bytes(), p["second"]
    forms = (Form.CALL, Form.PREFIXED_CALL, Form.CALL, Form.TAIL_JMP, Form.JCC, Form.TAIL_JMP, None)
    names = ("site_call", "site_prefixed", "site_straddling", "site_tail", "site_jcc", "__SCT_", "__SCK_")
    slot = EditKind.RELOCATION if p.addends.get(p["__SCK__alpha"]) else EditKind.KEY
    kinds = (*[EditKind.SITE] * 5, EditKind.TRAMPOLINE, slot)
    changes = parse(p, f"{bound('second')} __SCT__alpha=e9>second alpha>second")
    return [
        Edit(at, data[at : at + len(new)], new, kind, "alpha", p[f"{name}_alpha"], form, second if form else None)
        for (at, new), kind, name, form in zip(changes, kinds, names, forms, strict=True)
    ]


def test_edits(program: Program) -> None:
    edits = edits_of(program)
    patched = program.patched([(edit.file_offset, edit.new) for edit in edits])
    assert prove(program.path, patched, edits).keys == 1
    assert prove(patched, program.path, [edit.inverse() for edit in reversed(edits)]).keys == 1
    for i, edit in enumerate(edits):
        rest = [*edits[:i], *edits[i + 1 :]]
        wrong = {
            "no edit tells": rest,
            "overlaps": [*edits, edit],
            "expects": [*rest, edit._replace(old=bytes(len(edit.old)))],
            "promises": [*rest, edit._replace(new=bytes(len(edit.new)))],
            "replaces nothing": [*rest, edit._replace(new=edit.old)],
            "outside of the file": [*rest, edit._replace(file_offset=1 << 40)],
            "touches a": [*rest, edit._replace(kind=EditKind.KEY if edit.form else EditKind.SITE)],
        }
        if edit.form and edit.address is not None:
            wrong["promises the form"] = [*rest, edit._replace(form=Form.RET0)]
            wrong["promises a branch"] = [*rest, edit._replace(destination=program["first"])]
            wrong["elsewhere"] = [*rest, edit._replace(address=edit.address + 1)]
        for message, others in wrong.items():
            with pytest.raises(VerificationError, match=message):
                prove(program.path, patched, others)
    with pytest.raises(VerificationError, match="promises"):
        prove(program.path, program.path, edits)


def test_broken_files_are_refused_cleanly(build: Build, tmp_path: Path) -> None:
    data = build("relr").path.read_bytes()
    chance = random.Random(7)  # noqa: S311 - reproducible, no secret
    headers = int.from_bytes(data[40:48], "little")
    for i in range(400):
        broken = bytearray(data if i % 2 else data[: chance.randrange(len(data))])
        for _ in range(chance.randrange(1, 20) if i % 2 else 0):
            start, stop = chance.choice([(16, 64), (64, 2000), (headers, len(data)), (0, len(data))])
            broken[chance.randrange(start, stop)] = chance.choice([0, 1, 0x7F, 0xFF, chance.randrange(256)])
        path = write(tmp_path / "broken", broken)
        try:
            prove(path, path)
        except StaticcallError as error:
            assert error.path == path


def test_other_inputs(tmp_path: Path, build: Build) -> None:
    text = write(tmp_path / "text", b"#!/bin/sh\n" * 100)
    with pytest.raises(MalformedError, match="not an ELF file"):
        prove(text, text)
    with pytest.raises(MalformedError, match="not an ELF file"):
        prove(empty := write(tmp_path / "empty", b""), empty)
    other = bytearray(build("exec").path.read_bytes())
    other[18] = 183
    with pytest.raises(UnsupportedError, match="EM_AARCH64"):
        prove(arm := write(tmp_path / "arm", other), arm)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "missing", tmp_path / "pipe"):
        with pytest.raises(InputError):
            prove(path, path)
        with pytest.raises(InputError):
            same_layout(path, path)


def test_second_reader(build: Build) -> None:
    program = build("pie")
    data = program.path.read_bytes()
    moved = data.replace(b"__SCT__alpha\0", b"__SCT__alphb\0")
    with pytest.raises(VerificationError, match=r"symbol .*__SCT__alphb"):
        same_layout(program.path, write(program.path.with_suffix(".moved"), moved))
    text = write(program.path.with_suffix(".txt"), b"no ELF file")
    with pytest.raises(MalformedError, match="LIEF"):
        same_layout(text, text)


@pytest.mark.parametrize("prefix", ["", "2e", "67", "4f", "3e"])
def test_decoder_sees_the_same_wherever_the_code_stands(prefix: str) -> None:
    """One by one or many at once, near and far: small numbers look different in a disassembly."""
    decode = make_decoder()
    addresses = [0, 3, 0x1000, 0x7FFFFFFF, 0xFFFFFFFF81000000]
    codes = [
        Code(address, branch(prefix + opcode, address, (address + distance)) + b"\xcc" * 9)
        for address in addresses
        for opcode in ("e8", "e9", "0f84")
        for distance in (-7, 0, 5, 9, 0x1234)
    ]
    together = decode(codes)
    assert together == [one for code in codes for one in decode([code])]
    for code, decoded, distance in zip(codes, together, [-7, 0, 5, 9, 0x1234] * 15, strict=True):
        assert decoded.destination == (code.address + distance) % 2**64
        assert decoded.prefix == bytes.fromhex(prefix)
