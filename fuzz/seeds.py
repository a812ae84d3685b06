"""The sound files that inputs are made of: small ones of each kind, built from the fixtures by the machine's tools.

    stock = build(folder)

Every file is as small as the toolchain makes it: most of a run's time goes by its size.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from fuzz.mutate import Sample
from fuzz.regions import ARCHIVE_MAGIC, MEMBER_SIZE, Map, Region
from fuzz.seed import BARE, FIXTURES, KERNEL, ORIGINAL, PATCHED, SMALL, UNDO, Kind, Names, Seed, Stock, run, seed_of
from fuzz.shipped import containers, patched_containers, stripped, told
from tests.support import toolchain
from tests.support.archives import packed
from tests.support.elf_edit import ET_CORE, PT_LOAD, PT_NOTE, SEGMENT_SIZE, Elf
from tests.support.object_mutations import signed, with_wide_numbers
from tests.support.objects import Objects
from tests.support.tool import succeed

_ALONE = ("-nostartfiles", "-Wl,-e,main")


_CALLS = Names(("alpha", "beta", "hook", "zero"), ("alpha_fast", "beta_fast", "zero_plus", "hook_count"))
_OTHERS = Names(("plain", "sct_jmp", "posted_permanent", "scale"), ("plain_sub", "library_scale_fast"))
_TWO = Names(("one", "two"), ("first_target", "second_target", "elsewhere"))
_FILLED = Names(("filled", "empty", "zero"), ("function", "other", "early"))
_TYPED = Names(("number", "nothing", "pointer", "both"), ("another", "wider", "nothing", "both"))

# Programs with a C library around them: kind, packed relocations, more options, names.
_PROGRAMS: Final[Mapping[str, tuple[str, toolchain.Kind, bool, Sequence[str], Names]]] = {
    "pie": ("calls", "pie", False, _ALONE, _CALLS),
    "exec": ("calls", "exec", False, _ALONE, _CALLS),
    "relr": ("calls", "pie", True, _ALONE, _CALLS),
    "library": ("library", "shared", False, (), _OTHERS),
    "generations": ("generations", "pie", False, _ALONE, _OTHERS),
    "forms": ("forms", "pie", False, _ALONE, _OTHERS),
}
# Images without one, by source and options.
_IMAGES: Final[Mapping[str, tuple[str, Sequence[str], Kind, Names]]] = {
    "static-pie": ("kernel/kernel.S", ("-static-pie",), "image", _FILLED),
    "static-pie-relr": ("kernel/kernel.S", ("-static-pie", "-Wl,-z,pack-relative-relocs"), "image", _FILLED),
    "btf": ("fuzz/typed.c", ("-static-pie", "-fPIE", "-gbtf"), "image", _TYPED),
    "dwarf-5": ("fuzz/typed.c", ("-static-pie", "-fPIE", "-gdwarf-5"), "image", _TYPED),
    "dwarf-4": ("fuzz/typed.c", ("-static", "-no-pie", "-fno-pie", "-gdwarf-4"), "image", _TYPED),
    "kernel-6.12": ("kernel/kernel.S", (*KERNEL, "-DTHUNK"), "kernel", _FILLED),
    "kernel-prefixed": (
        "kernel/kernel.S",
        (*KERNEL, "-DTHUNK", "-DPREFIXED", "-DNO_BANNER", "-DMESSAGE"),
        "kernel",
        _FILLED,
    ),
    "kernel-5.10": ("kernel/kernel.S", (*KERNEL, "-DUNSIGNED", "-DNO_RETURN", "-DNO_JCC"), "kernel", _FILLED),
    "kernel-5.15": ("kernel/kernel.S", (*KERNEL, "-DSCT", "-DXOR=0x66,0x66,0x48,0x31,0xc0"), "kernel", _FILLED),
    "kernel-tables": ("fuzz/tables.S", (*KERNEL, "-DTHUNK"), "kernel", _FILLED),
    "kernel-symbols": ("fuzz/tables.S", (*KERNEL, "-DTHUNK", "-DIN_RODATA"), "kernel", _FILLED),
    "kernel-relocations": ("fuzz/tables.S", (*KERNEL, "-DTHUNK", "-Wl,--emit-relocs"), "kernel", _FILLED),
}
_PLAIN: Final[Sequence[tuple[str, toolchain.Compiler]]] = (
    ("calls-kernel", "gcc"),
    ("calls-function_sections", "clang"),
    ("calls-no_plt", "gcc"),
    ("inline_one", "gcc"),
    ("clang_tables", "clang"),
    ("section_relative", "clang"),
    ("unsorted", "gcc"),
    ("two_keys", "gcc"),
    ("calls-debug", "gcc"),
)
_OPTIONS = """policy = "kernel"
line = 32
bind = true
key = "{key}*"
force = ["kaslr-slot", "null-returns-value"]
force-type = true
pin = ["{key}"]
[set]
{key} = "{target}"
"""


def build(folder: Path) -> Stock:
    """Build every seed in an empty folder; raises `BuildError` where the toolchain cannot."""
    seeds = [*_images(folder), *_objects(folder)]
    seeds += [_archive(seeds), *_patched(folder, seeds), *_texts(seeds), *_aids(seeds)]
    seeds += [*containers(seeds), *patched_containers(folder, seeds), *stripped(folder, seeds), told(folder, seeds)]
    return Stock(tuple(seeds), tuple(seed.sample for seed in seeds if seed.sample.map.regions[0].name != "text"))


def _images(folder: Path) -> Iterator[Seed]:
    for name, (fixture, kind, relr, more, names) in _PROGRAMS.items():
        path = toolchain.build(fixture, folder, kind=kind, relr=relr, extra=("-g0", *SMALL, *more))
        yield seed_of(name, "image", path.read_bytes(), names)
    for name, (source, options, role, names) in _IMAGES.items():
        version = name.partition("-")[2] if name[-1].isdigit() and role == "kernel" else "6.12"
        path, part = folder / name, folder / f"{name}.o"
        # In one step the file would have the name of a temporary one in it.
        run("gcc", *BARE, f'-DVERSION="{version}.0"', *options, "-c", "-o", part, FIXTURES / source)
        run("gcc", *BARE, *options, "-o", path, part)
        content = path.read_bytes()
        yield seed_of(name, role, _without_section(content) if name == "kernel-symbols" else content, names)


def _without_section(content: bytes) -> bytes:
    """The table's section is called as another one: only symbols say where the records are."""
    elf = Elf(content)
    elf.section(".static_call_sites")["name"] = elf.section(".rodata")["name"]
    return bytes(elf.data)


def _objects(folder: Path) -> Iterator[Seed]:
    made = Objects(folder)
    for name, compiler in _PLAIN:
        path = made(name, compiler)
        yield seed_of(f"{name}-{compiler}", "plain", path.read_bytes(), _TWO)
        if name in ("two_keys", "unsorted", "calls-kernel"):
            annotated = path.with_suffix(".annotated.o")
            succeed("annotate", *(["--module"] if name == "calls-kernel" else []), path, "-o", annotated)
            yield seed_of(f"{name}-annotated", "object", annotated.read_bytes(), _TWO)
    content = annotated.read_bytes()
    path = folder / "typed.o"
    run("gcc", "-O2", "-gbtf", "-c", "-o", path, FIXTURES / "fuzz" / "typed.c")
    yield seed_of("typed", "object", path.read_bytes(), _TYPED)
    yield seed_of("signed", "object", signed(content), _TWO)
    yield seed_of("wide", "object", with_wide_numbers(content), _TWO)


def _archive(seeds: Sequence[Seed]) -> Seed:
    """An archive as ar makes them, with an index and long names, of objects with and without a table."""
    contents = {seed.name: seed.content for seed in seeds}
    names = b"a-name-that-does-not-fit.o/\nmore/\n"
    symbol = b"both\0\0"
    first = len(ARCHIVE_MAGIC) + 2 * MEMBER_SIZE + 8 + len(symbol) + len(names)
    index = (1).to_bytes(4, "big") + first.to_bytes(4, "big") + symbol
    members = [(b"/", index), (b"//", names), (b"/0", contents["two_keys-annotated"])]
    members += [(b"second.o/", contents["two_keys-gcc"]), (b"text/", b"odd")]
    return seed_of("archive", "archive", packed(*members), _TWO)


def _patched(folder: Path, seeds: Sequence[Seed]) -> Iterator[Seed]:
    """Patched files beside their originals and undo files, and undo files beside patched files."""
    for seed in seeds:
        if seed.name not in ("pie", "relr", "kernel-6.12", "two_keys-annotated", "signed", "static-pie"):
            continue
        original, patched, undo = (folder / f"{seed.name}.{what}" for what in ("original", "patched", "undo"))
        original.write_bytes(seed.content)
        strip = ["--strip-signature"] if seed.name == "signed" else []
        succeed("patch", original, "--bind", "--policy", "kernel", "-o", patched, "--edits", undo, *strip)
        old, new, edits = seed.content, patched.read_bytes(), undo.read_bytes()
        yield seed_of(f"patched {seed.name}", "patched", new, seed.names, {ORIGINAL: old, UNDO: edits})
        if len(edits) < 20_000:
            yield seed_of(f"undo of {seed.name}", "undo", edits, seed.names, {PATCHED: new})


def _texts(seeds: Sequence[Seed]) -> Iterator[Seed]:
    by_name = {seed.name: seed for seed in seeds}
    for name in ("pie", "kernel-6.12", "two_keys-annotated"):
        seed = by_name[name]
        text = _OPTIONS.format(key=seed.names.keys[0], target=seed.names.targets[1])
        yield seed_of(f"options for {name}", "options", text.encode(), seed.names, {ORIGINAL: seed.content})


def _aids(seeds: Sequence[Seed]) -> Iterator[Seed]:
    """What helps to judge another file: relocations and types of a kernel, and memory."""
    by_name = {seed.name: seed for seed in seeds}
    kernel, typed = by_name["kernel-6.12"], by_name["typed"]
    yield Seed("relocs", "relocs", _relocs(kernel.content), kernel.names, {ORIGINAL: kernel.content})
    for name in ("btf", "dwarf-5"):
        yield seed_of(f"{name} for a module", "vmlinux", by_name[name].content, typed.names, {ORIGINAL: typed.content})
    for name, slide in (
        ("kernel-6.12", 0x1200000),
        ("kernel-tables", 0),
        ("static-pie", 0x555555554000),
        ("pie", 0x7F0000000000),
    ):
        seed = by_name[name]
        yield seed_of(f"memory of {name}", "core", _core(seed.content, slide), seed.names, {ORIGINAL: seed.content})


def _relocs(kernel: bytes) -> Sample:
    """A vmlinux.relocs: a zero, 64-bit places, a zero, 32-bit places, as arch/x86/tools/relocs.c writes them."""
    elf = Elf(kernel)
    slots = [elf.symbol(f"__SCK__{name}")["value"] & 0xFFFFFFFF for name in ("filled", "zero")]
    words = [0, *slots, 0, elf.symbol("filled_call")["value"] & 0xFFFFFFFF]
    content = b"".join(word.to_bytes(4, "little") for word in words)
    return Sample(content, Map((Region("words", 0, len(content), ((0, 4),)),), tuple(words), (), ()))


def _core(image: bytes, slide: int) -> bytes:
    """An ELF core of an image as it is loaded, moved by `slide`: with the notes of a kernel's and of a process's."""
    elf = Elf(image)
    loaded = [one for one in elf.segments() if one["type"] == PT_LOAD]
    entry = elf.header["entry"] + slide
    maps = [
        (one["vaddr"] + slide & -4096, one["vaddr"] + one["memsz"] + slide + 4095 & -4096, one["offset"] >> 12)
        for one in loaded
    ]
    files = (
        struct.pack("<QQ", len(maps), 4096)
        + b"".join(struct.pack("<QQQ", *one) for one in maps)
        + b"/program\0" * len(maps)
    )
    notes = b"".join(
        (
            _note(b"CORE", 0x46494C45, files),
            _note(b"CORE", 6, struct.pack("<QQQQQQ", 3, loaded[0]["vaddr"] + slide + 64, 9, entry, 0, 0)),
            _note(b"VMCOREINFO", 0, b"OSRELEASE=6.12.0\nPAGESIZE=4096\nKERNELOFFSET=%x\nNUMBER(phys_base)=0\n" % slide),
        )
    )
    offset = 64 + SEGMENT_SIZE * (1 + len(loaded))
    headers = [struct.pack("<IIQQQQQQ", PT_NOTE, 0, offset, 0, 0, len(notes), 0, 0)]
    pieces = [notes]
    for one in loaded:
        at = offset + sum(map(len, pieces))
        piece = image[one["offset"] : one["offset"] + one["filesz"]]
        headers.append(
            struct.pack("<IIQQQQQQ", PT_LOAD, 7, at, one["vaddr"] + slide, one["paddr"], len(piece), one["memsz"], 4096)
        )
        pieces.append(piece)
    head = bytearray(image[:64])
    struct.pack_into("<H", head, 16, ET_CORE)
    struct.pack_into("<QQ", head, 32, 64, 0)
    struct.pack_into("<HHHHH", head, 54, SEGMENT_SIZE, len(headers), 0, 0, 0)
    return bytes(head) + b"".join(headers + pieces)


def _note(name: bytes, kind: int, description: bytes) -> bytes:
    name += b"\0"
    head = struct.pack("<III", len(name), len(description), kind)
    return head + name + bytes(-len(name) % 4) + description + bytes(-len(description) % 4)
