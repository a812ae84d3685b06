"""Sound files as distributions ship them: packed in all ways, and kernels whose names are elsewhere."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

from fuzz.mutate import Sample
from fuzz.packing import map_of, pack
from fuzz.regions import Region
from fuzz.seed import BARE, FIXTURES, KERNEL, ORIGINAL, PATCHED, UNDO, Kind, Seed, run, seed_of
from tests.support import kallsyms
from tests.support.elf_edit import Elf
from tests.support.tool import succeed

# What is around a file, the innermost layer first.
_AROUND: Final[Mapping[str, Sequence[tuple[str, ...]]]] = MappingProxyType(
    {
        "pie": (("gzip",), ("bzip2", "zstd-stream")),
        "two_keys-annotated": (
            *(("xz",), ("zstd",), ("lzma",), ("lz4",), ("lzo",), ("cpio",), ("xz", "cpio", "gzip")),
            *(("tar", "xz", "deb"), ("zstd", "tar", "deb"), ("cpio", "zstd", "early"), ("gzip", "archive")),
            ("cpio", "gzip", "tar", "zstd", "deb"),
        ),
        "kernel-6.12": (
            *(("zstd-stream",), ("bzimage-gzip",), ("bzimage-xz",), ("bzimage-zstd",), ("bzimage-lz4-legacy",)),
            *(("bzimage-lzma",), ("bzimage-bzip2",), ("bzimage-lzo", "tar", "xz", "deb"), ("lz4-legacy",)),
        ),
    }
)
_ARCHIVES: Final = ("cpio", "deb", "archive", "early")
# Packed files that are patched, too.
_PATCHED_AROUND: Final[Mapping[str, Sequence[str]]] = MappingProxyType(
    {"two_keys-annotated": ("xz", "zstd"), "kernel-6.12": ("bzimage-zstd",), "pie": ("gzip",)}
)


def containers(seeds: Sequence[Seed]) -> Iterator[Seed]:
    """Each of some seeds in all that may be around it."""
    by_name = {seed.name: seed for seed in seeds}
    for name, all_layers in _AROUND.items():
        for layers in all_layers:
            yield packed_seed(by_name[name], layers)


def packed_seed(seed: Seed, layers: tuple[str, ...]) -> Seed:
    """A seed with layers around it."""
    samples = [seed.sample]
    for layer in layers:
        content = pack(layer, samples[-1].content)
        samples.append(Sample(content, map_of(layer, content)))
    kind: Kind = "members" if layers[-1] in _ARCHIVES or "cpio" in layers else "container"
    name = " in ".join((seed.name, *layers))
    return Seed(name, kind, samples[-1], seed.names, {ORIGINAL: samples[-1].content}, layers, tuple(samples[:-1]))


def patched_containers(folder: Path, seeds: Sequence[Seed]) -> Iterator[Seed]:
    """As `_patched`; what is damaged may be the container, what is inside of it, or the undo file."""
    by_name = {seed.name: seed for seed in seeds}
    for name, layers in _PATCHED_AROUND.items():
        for layer in layers:
            seed = packed_seed(by_name[name], (layer,))
            original, patched, undo = (folder / f"{name}.{layer}.{what}" for what in ("original", "patched", "undo"))
            original.write_bytes(seed.content)
            wish = ("--set", f"one={seed.names.targets[0]}") if name.startswith("two") else ("--bind",)
            succeed("patch", original, *wish, "--policy", "kernel", "-o", patched, "--edits", undo)
            new, edits = patched.read_bytes(), undo.read_bytes()
            beside = {ORIGINAL: seed.content, UNDO: edits}
            sample = Sample(new, map_of(layer, new))
            yield seed._replace(name=f"patched {seed.name}", kind="patched", sample=sample, beside=beside)
            yield seed_of(f"undo of {seed.name}", "undo", edits, seed.names, {PATCHED: new})


def stripped(folder: Path, seeds: Sequence[Seed]) -> Iterator[Seed]:
    """Kernels without symbols, with kallsyms or without, and what names them: damaged is one or the other."""
    names = {seed.name: seed for seed in seeds}["kernel-6.12"].names
    for layout in ("6.4", "4.4", "6.15", "7.2"):
        named, region = _with_kallsyms(folder, layout)
        seed = seed_of(f"stripped, kallsyms of {layout}", "kernel", _without_symbols(named), names)
        known = seed.sample.map
        # Half of the damage is to be there.
        known = known._replace(regions=(*known.regions, *[region] * len(known.regions)))
        yield seed._replace(sample=seed.sample._replace(map=known))
    kernel = folder / "with-build-id"
    run("gcc", *BARE, *KERNEL, "-Wl,--build-id", "-o", kernel, folder / "kallsyms-kernel.o")
    bare = _without_symbols(kernel)
    yield seed_of("bare", "kernel", bare, names)
    lines = [f"{symbol.address:016x} {symbol.letter} {symbol.name}\n" for symbol in _symbols_of(kernel)]
    yield seed_of("System.map", "system map", "".join(lines).encode(), names, {ORIGINAL: bare})
    debug = folder / "debug"
    run("objcopy", "--only-keep-debug", kernel, debug)
    yield seed_of("debug file", "debug file", debug.read_bytes(), names, {ORIGINAL: bare})


def _without_symbols(path: Path) -> bytes:
    out = path.with_name(f"{path.name}.stripped")
    run("strip", "-o", out, path)
    return out.read_bytes()


def _with_kallsyms(folder: Path, layout: str) -> tuple[Path, Region]:
    """A small kernel with its own names among its read-only data, whose size does not depend on the addresses."""
    source, part, out = FIXTURES / "kernel" / "kernel.S", folder / "kallsyms.o", folder / f"kallsyms-{layout}"
    tables, assembly, main = (folder / f"kallsyms{end}" for end in (".bin", ".S", "-kernel.o"))
    assembly.write_text(f'.section .rodata, "a"\n.balign 16\nnames_of_all:\n.incbin "{tables}"\n')
    run("gcc", *BARE, "-DTHUNK", '-DVERSION="6.12.0"', "-c", "-o", main, source)
    tables.write_bytes(bytes(16))
    for _ in range(3):
        run("gcc", "-c", "-o", part, assembly)
        run("gcc", *BARE, *KERNEL, "-o", out, main, part)
        elf = Elf(out.read_bytes())
        address = elf.symbol("names_of_all")["value"]
        place = Region("kallsyms", elf.offset_of(address), tables.stat().st_size, ((0, 1), (1, 1), (2, 2), (4, 4)))
        tables.write_bytes(kallsyms.tables(_symbols_of(out), kallsyms.LAYOUTS[layout], address).data)
    return out, place


def _symbols_of(path: Path) -> list[kallsyms.Symbol]:
    out = subprocess.run(["nm", "-n", path], capture_output=True, text=True, check=True).stdout  # noqa: S603, S607 - the machine's nm
    found = [kallsyms.Symbol(int(line[:16], 16), line[17], line[19:]) for line in out.splitlines() if line[0] != " "]
    return [symbol for symbol in found if not symbol.name.startswith(("_end", "_edata", "__bss"))]


def told(folder: Path, seeds: Sequence[Seed]) -> Seed:
    """A report as `diff` reads it, and the image that it is of."""
    seed = {seed.name: seed for seed in seeds}["kernel-6.12"]
    path = folder / "told"
    path.write_bytes(seed.content)
    text = succeed("report", "--format", "json", path).replace(str(path), "vmlinux").encode()
    return seed_of("a report", "told", text, seed.names, {ORIGINAL: seed.content})
