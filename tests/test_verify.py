"""The proof of linked images: what it lets pass, and that it lets nothing else pass."""

from __future__ import annotations

import os
import random
import struct
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from staticcall.abi.static_call import NOP5, RET0_CS, RET0_DATA16, RET_SITE, RET_TRAMPOLINE
from staticcall.errors import InputError, MalformedError, StaticcallError, UnsupportedError, VerificationError
from staticcall.model.change import Edit, EditKind, Proof
from staticcall.model.sites import Form
from staticcall.verify import prove
from staticcall.verify.decode import Code, make_decoder
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

Patches = Mapping[int, bytes]  # linked address -> new bytes


@dataclass(frozen=True)
class Program:
    """A built program: where its symbols and its loaded bytes are."""

    path: Path
    symbols: dict[str, int]
    loads: tuple[tuple[int, int, int], ...]
    addends: dict[int, int]  # slot -> file offset of the addend of its relocation
    table: tuple[int, int]

    def __getitem__(self, name: str) -> int:
        return self.symbols[name]

    def offset(self, address: int) -> int:
        return next(address - start + offset for start, size, offset in self.loads if 0 <= address - start < size)

    def slot(self, key: str, func: int) -> tuple[int, bytes]:
        """The file offset and bytes that make `key` lead to `func`."""
        address = self[key]
        return self.addends.get(address, self.offset(address)), struct.pack("<Q", func)

    def patched(self, patches: Patches, slots: Mapping[str, int] | None = None) -> Path:
        data = bytearray(self.path.read_bytes())
        places = [(self.offset(address), new) for address, new in patches.items()]
        places += [self.slot(key, func) for key, func in (slots or {}).items()]
        for offset, new in places:
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
            (table["sh_addr"], table["sh_addr"] + table["sh_size"]),
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


def at(p: Program, site: str, opcode: str, target: str) -> dict[int, bytes]:
    address = p[f"site_{site}"]
    return {address: branch(opcode, address, p[target])}


def home(p: Program, key: str, target: str, opcode: str = "e9") -> dict[int, bytes]:
    address = p[f"__SCT__{key}"]
    return {address: branch(opcode, address, p[target])}


def bind_alpha(p: Program, target: str) -> dict[int, bytes]:
    return {
        **at(p, "call_alpha", "e8", target),
        **at(p, "prefixed_alpha", "2ee8", target),
        **at(p, "tail_alpha", "e9", target),
        **at(p, "jcc_alpha", "0f84", target),
    }


def proves(p: Program, patches: Patches, slots: Mapping[str, int] | None = None) -> tuple[Proof, str]:
    """Prove a patch and the way back; returns the proof and what the patched program prints."""
    patched = p.patched(patches, slots)
    proof = prove(p.path, patched)
    assert proof.compared == p.path.stat().st_size
    back = prove(patched, p.path)
    assert (back.trampolines, back.keys, back.changed_keys) == (proof.trampolines, proof.keys, proof.changed_keys)
    same_layout(p.path, patched)
    return proof, run(patched)


def test_nothing_changed(program: Program) -> None:
    proof, output = proves(program, {})
    assert proof == Proof(program.path.stat().st_size, {}, 0, 0, ())
    assert output == UNCHANGED


def test_bound_sites(program: Program) -> None:
    proof, output = proves(program, bind_alpha(program, "first"))
    assert proof.sites == {"call": 1, "prefixed_call": 1, "tail_jmp": 1, "jcc": 1}
    assert (proof.trampolines, proof.keys, proof.changed_keys) == (0, 0, ("alpha",))
    assert output == UNCHANGED


def test_retargeted_key(program: Program) -> None:
    patches = {**bind_alpha(program, "second"), **home(program, "alpha", "second")}
    proof, output = proves(program, patches, {"__SCK__alpha": program["second"]})
    assert (proof.trampolines, proof.keys) == (1, 1)
    assert output == "2 2 2 2 9 2 2 2 0 0 1 1 9 9"


def test_retargeted_by_trampoline_alone(program: Program) -> None:
    slots = {f"__SCK__{key}": program["second"] for key in ("alpha", "epsilon", "zeta")}
    patches = {**home(program, "alpha", "second"), **home(program, "zeta", "second", "e8")}
    proof, output = proves(program, patches, slots)
    assert (proof.sites, proof.trampolines, proof.keys) == ({}, 2, 3)
    assert output == "2 2 2 2 9 2 2 2 0 0 2 2 9 9"


@pytest.mark.parametrize("xor", [RET0_CS, RET0_DATA16])
def test_forms_without_destination(program: Program, xor: bytes) -> None:
    patches = {
        program["site_call_beta"]: NOP5,
        program["site_prefixed_beta"]: b"\x2e" + NOP5,
        program["site_tail_beta"]: RET_SITE,
        program["site_call_gamma"]: xor,
        **at(program, "tail_gamma", "e9", "__static_call_return0"),
        **at(program, "tail_delta", "e9", "__x86_return_thunk"),
        **at(program, "jcc_delta", "0f84", "__static_call_return"),
    }
    proof, output = proves(program, patches)
    assert proof.sites == {"nop": 2, "ret": 1, "ret0": 1, "tail_jmp": 2, "jcc": 1}
    assert output == UNCHANGED


def test_null_comes_and_goes_where_nothing_is_relocated(build: Build) -> None:
    program = build("exec")
    patches = {**home(program, "beta", "first"), **at(program, "tail_beta", "e9", "first")}
    assert proves(program, patches, {"__SCK__beta": program["first"]})[0].keys == 1
    patches = {program["__SCT__gamma"]: RET_TRAMPOLINE, program["site_call_gamma"]: NOP5}
    assert proves(program, patches, {"__SCK__gamma": 0})[0].keys == 1


def test_names_of_2018(build: Build) -> None:
    program = build("old")
    proof, output = proves(program, bind_alpha(program, "first"))
    assert proof.changed_keys == ("alpha",)
    assert output == UNCHANGED
    tramp = program["____static_call_tramp_zeta"]
    with pytest.raises(VerificationError, match="zeta"):
        prove(program.path, program.patched({tramp: branch("e8", tramp, program["second"])}))


@pytest.mark.parametrize("variant", ["exec", "pie"])
def test_stripped(build: Build, variant: str, tmp_path: Path) -> None:
    full = build(variant)
    path = tmp_path / "stripped"
    subprocess.run(["strip", "-o", str(path), str(full.path)], check=True)
    program = inspect(path, full)
    patches = {**bind_alpha(program, "second"), **home(program, "alpha", "second")}
    proof, output = proves(program, patches, {"__SCK__alpha": program["second"]})
    assert proof.changed_keys == (f"{program['__SCK__alpha']:#x}",)
    assert output.startswith("2 2 2 2")
    with pytest.raises(VerificationError, match="site"):
        prove(path, program.patched(home(program, "alpha", "first") | bind_alpha(program, "second")))


def test_table_of_the_callers_choice(build: Build) -> None:
    program = build("exec")
    start, stop = program.table
    patched = program.patched(at(program, "call_alpha", "e8", "first"))
    assert prove(program.path, patched, table=(start, stop)).sites == {"call": 1}
    with pytest.raises(VerificationError, match="belongs to no site"):
        prove(program.path, patched, table=(start + 8 * 5, stop))
    with pytest.raises(MalformedError, match="table"):
        prove(program.path, patched, table=(start + 1, stop))


def test_table_between_symbols(build: Build, tmp_path: Path) -> None:
    full = build("exec")
    path = tmp_path / "renamed"
    size = full.table[1] - full.table[0]
    marks = [("start", "static_call_sites:0"), ("stop", f"static_call_sites:{size}")]
    added = [f"--add-symbol=__{name}_static_call_sites={value}" for name, value in marks]
    renamed = ["--rename-section=static_call_sites=.elsewhere"]
    subprocess.run(["objcopy", *added, str(full.path), str(path)], check=True)
    subprocess.run(["objcopy", *renamed, str(path)], check=True)
    program = replace(full, path=path)
    assert proves(program, bind_alpha(program, "first"))[0].changed_keys == ("alpha",)


Illegal = Callable[[Program], tuple[Patches, Mapping[str, int]]]
ILLEGAL: dict[str, tuple[Illegal, str]] = {
    "wrong destination": (lambda p: (at(p, "call_alpha", "e8", "second"), {}), "neither the trampoline nor"),
    "another key's trampoline": (lambda p: (at(p, "call_alpha", "e8", "__SCT__zeta"), {}), "neither"),
    "into data": (lambda p: (at(p, "call_alpha", "e8", "__SCK__alpha"), {}), "no code"),
    "call becomes jmp": (lambda p: (at(p, "call_alpha", "e9", "first"), {}), "was a call and became"),
    "jmp becomes call": (lambda p: (at(p, "tail_alpha", "e8", "first"), {}), "was a tail jump"),
    "wrong condition": (lambda p: (at(p, "jcc_alpha", "0f85", "first"), {}), "was je and became jne"),
    "prefix lost": (
        lambda p: ({p["site_prefixed_alpha"]: b"\x90" + branch("e8", p["site_prefixed_alpha"] + 1, p["first"])}, {}),
        "nop",
    ),
    "prefix exchanged": (lambda p: (at(p, "prefixed_alpha", "3ee8", "first"), {}), "prefix 2e, now 3e"),
    "truncating prefix": (lambda p: (at(p, "prefixed_alpha", "66e8", "first"), {}), "no static call is made of"),
    "nop of a live call": (lambda p: ({p["site_call_alpha"]: NOP5}, {}), "is a nop"),
    "nop of a tail jump": (lambda p: ({p["site_tail_beta"]: NOP5}, {}), "became a call"),
    "another nop": (lambda p: ({p["site_call_beta"]: bytes.fromhex("0f1f440001")}, {}), "became nop"),
    "xor where func is another": (lambda p: ({p["site_call_alpha"]: RET0_CS}, {}), "clears eax"),
    "ret of a live tail": (lambda p: ({p["site_tail_alpha"]: RET_SITE}, {}), "returns"),
    "call becomes ret": (lambda p: ({p["site_call_beta"]: RET_SITE}, {}), "became a tail jump"),
    "ret without padding": (lambda p: ({p["site_tail_beta"]: RET_TRAMPOLINE}, {}), "bytes long"),
    "call of the thunk": (lambda p: (at(p, "call_beta", "e8", "__x86_return_thunk"), {}), "neither"),
    "jmp to the plain return": (lambda p: (at(p, "tail_delta", "e9", "__static_call_return"), {}), "neither"),
    "indirect site rewritten": (
        lambda p: ({p["site_through_key"]: branch("2ee8", p["site_through_key"], p["first"])}, {}),
        "indirect_call",
    ),
    "signature destroyed": (lambda p: ({p["__SCT__alpha"] + 5: b"\x0f\xb9\xcd"}, {}), "signature"),
    "trampoline leads astray": (lambda p: (home(p, "alpha", "second"), {}), "does not lead to the target of alpha"),
    "trampoline returns": (lambda p: ({p["__SCT__alpha"]: RET_TRAMPOLINE}, {}), "does not lead"),
    "trampoline calls": (lambda p: (home(p, "alpha", "first", "e8"), {}), "no form"),
    "temporary trampoline": (lambda p: (home(p, "epsilon", "first"), {}), "no form that may be rewritten"),
    "slot alone": (lambda p: ({}, {"__SCK__alpha": p["second"]}), "the trampoline .* does not lead"),
    "slot and trampoline, site left behind": (
        lambda p: (
            {**home(p, "zeta", "second", "e8"), **at(p, "call_zeta", "e8", "first")},
            {"__SCK__zeta": p["second"]},
        ),
        "call_zeta|neither",
    ),
    "slot to data": (lambda p: (home(p, "alpha", "pointer"), {"__SCK__alpha": p["pointer"]}), "no code"),
    "slot to its trampoline": (
        lambda p: (home(p, "alpha", "__SCT__alpha"), {"__SCK__alpha": p["__SCT__alpha"]}),
        "to itself",
    ),
    "record": (lambda p: ({p.table[0]: b"\0"}, {}), "belongs to no site"),
    "neighbour of a site": (lambda p: ({p["site_call_alpha"] + 5: b"\x90"}, {}), "belongs to no site"),
    "second word of a key": (lambda p: ({p["__SCK__alpha"] + 8: b"\1"}, {}), "belongs to no site"),
    "code elsewhere": (lambda p: ({p["first"]: b"\xcc"}, {}), "belongs to no site"),
}


@pytest.mark.parametrize("case", ILLEGAL)
def test_illegal(program: Program, case: str) -> None:
    make, message = ILLEGAL[case]
    with pytest.raises(VerificationError, match=message) as raised:
        prove(program.path, program.patched(*make(program)))
    assert raised.value.path == program.path.with_suffix(".patched")
    assert raised.value.offset is not None


@pytest.mark.parametrize("variant", ["pie", "relr"])
def test_null_may_not_come_or_go_where_a_loader_relocates(build: Build, variant: str) -> None:
    program = build(variant)
    with pytest.raises(VerificationError, match="relocations did not follow"):
        prove(program.path, program.patched(home(program, "beta", "first"), {"__SCK__beta": program["first"]}))
    with pytest.raises(VerificationError, match="relocations did not follow"):
        prove(program.path, program.patched({program["__SCT__gamma"]: RET_TRAMPOLINE}, {"__SCK__gamma": 0}))


def test_the_slot_of_a_relocation_stays(build: Build) -> None:
    program = build("pie")
    patched = program.patched({**home(program, "zeta", "second", "e8"), program["__SCK__zeta"]: b"\x01"})
    with pytest.raises(VerificationError):
        prove(program.path, patched)
    with pytest.raises(VerificationError, match="belongs to no site"):
        prove(program.path, program.patched({program["__SCK__zeta"]: b"\x01"}))


def test_size(program: Program) -> None:
    longer = write(program.path.with_suffix(".longer"), program.path.read_bytes() + b"\0")
    with pytest.raises(VerificationError, match="size changed"):
        prove(program.path, longer)


def test_every_flipped_byte_is_noticed(program: Program) -> None:
    data = program.path.read_bytes()
    chance = random.Random(5)  # noqa: S311 - reproducible, no secret
    places = {program.offset(program[f"__SCT__{key}"]) + i for key in KEYS for i in range(8)}
    places |= {program.slot(f"__SCK__{key}", 0)[0] + i for key in KEYS for i in range(8)}
    places |= {program.offset(v) + i for n, v in program.symbols.items() if n.startswith("site_") for i in range(7)}
    places |= {chance.randrange(len(data)) for _ in range(200)} | {0, 4, 16, len(data) - 1}
    # Nothing but its slot says where a temporary trampoline leads, so there another function is legal.
    free, _ = program.slot("__SCK__epsilon", 0)
    for offset in sorted(places - set(range(free, free + 8))):
        flipped = bytearray(data)
        flipped[offset] ^= 0xFF
        with pytest.raises(VerificationError):
            prove(program.path, write(program.path.with_suffix(".flipped"), flipped))


def edits_of(p: Program) -> list[Edit]:
    data = p.path.read_bytes()
    second = p["second"]

    def edit(offset: int, new: bytes, kind: EditKind, address: int, form: Form | None = None) -> Edit:
        old = data[offset : offset + len(new)]
        return Edit(offset, old, new, kind, "alpha", address, form, second if form else None)

    forms = (Form.CALL, Form.PREFIXED_CALL, Form.TAIL_JMP, Form.JCC)
    sites = zip(bind_alpha(p, "second").items(), forms, strict=True)
    edits = [edit(p.offset(a), new, EditKind.SITE, a, form) for (a, new), form in sites]
    for address, new in home(p, "alpha", "second").items():
        edits.append(edit(p.offset(address), new, EditKind.TRAMPOLINE, address, Form.TAIL_JMP))
    offset, new = p.slot("__SCK__alpha", second)
    kind = EditKind.RELOCATION if p["__SCK__alpha"] in p.addends else EditKind.KEY
    return [*edits, edit(offset, new, kind, p["__SCK__alpha"])]


def apply(p: Program, edits: Sequence[Edit]) -> Path:
    data = bytearray(p.path.read_bytes())
    for edit in edits:
        data[edit.file_offset : edit.file_offset + len(edit.new)] = edit.new
    return write(p.path.with_suffix(".edited"), data)


def test_edits(program: Program) -> None:
    edits = edits_of(program)
    patched = apply(program, edits)
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
        if edit.form:
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
