"""Names that the kernel's own program for it put into tables, read back: `scripts/kallsyms` as Debian ships it built.

It gets a list as nm prints it, what it prints is assembled and linked at a kernel's addresses, and what is read there
has to be that list.
"""

from __future__ import annotations

import random
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from staticcall.read.image import open_image
from staticcall.read.kallsyms import read_kallsyms
from tests.support import small_kernels

pytestmark = pytest.mark.kernel

TEXT: Final = 0xFFFFFFFF81000000
TEXT_SIZE: Final = 0x100000
RODATA: Final = 0xFFFFFFFF81200000
CODE: Final = f"""
    .globl _text
    .text
_text:
    .fill {TEXT_SIZE}, 1, 0xcc
"""
PIECES: Final = ("sys_", "static_call", "__SCT__", "_", "tp_func_", "x", "7", "Rust", "dev", "$u20", ".isra.0", "cpu")
PER_CPU: Final = ((0, "D", "__per_cpu_start"), (0x1000, "d", "cpu_number"), (0x20000, "D", "__per_cpu_end"))

Line = tuple[int, str, str]


class Program(NamedTuple):
    """One series' program, and the options with which its tables differ."""

    path: Path
    variants: tuple[tuple[str, ...], ...]


@pytest.fixture(scope="module")
def program(kallsyms_program: Path) -> Program:
    usage = subprocess.run([kallsyms_program], capture_output=True, text=True, check=False).stderr
    optional = "--base-relative" in usage  # newer ones know nothing else
    relative = ("--base-relative",) if optional else ()
    return Program(kallsyms_program, (*([()] if optional else []), relative, (*relative, "--absolute-percpu")))


def linked(program: Path, options: tuple[str, ...], lines: list[Line], folder: Path) -> Path:
    """A kernel of nothing but code and the tables that the program makes of a list."""
    (folder / "asm").mkdir()
    (folder / "asm" / "bitsperlong.h").write_text("#define BITS_PER_LONG 64\n")
    listing, source, out = folder / "list", folder / "tables.S", folder / "vmlinux"
    listing.write_text("".join(f"{address:016x} {letter} {name}\n" for address, letter, name in lines))
    with source.open("w") as file:
        subprocess.run([program, "--all-symbols", *options, listing], stdout=file, check=True)
        file.write(CODE)
    flags = f"-Wl,-Ttext={TEXT:#x},--section-start=.rodata={RODATA:#x},--build-id=none,--strip-all,-e,0"
    subprocess.run(["gcc", "-nostdlib", "-static", "-no-pie", "-I", folder, flags, "-o", out, source], check=True)
    return out


def read_back(image: Path) -> list[Line]:
    with open_image(image) as opened:
        assert opened.name_source.kind == "kallsyms"
        listing = read_kallsyms(opened.source, opened.sections, opened.segments)
        assert listing is not None
        lines = [
            (address, chr(letter), listing.name(number).decode())
            for number, (address, letter) in enumerate(zip(listing.addresses, listing.letters, strict=True))
        ]
        # The table of symbols that is asked has the same.
        for address, _, name in lines[:: max(len(lines) // 20, 1)]:
            assert address in {symbol.address for symbol in opened.symbols.named(name)}
    return lines


def of_a_kernel(folder: Path) -> list[Line]:
    """What nm says of a small kernel, and all digits."""
    kernel = small_kernels.build(folder, "6.12.1", "XOR")
    listing = subprocess.run(["nm", "-n", kernel], capture_output=True, text=True, check=True).stdout
    found = [line.split() for line in listing.splitlines()]
    ours = [(int(address, 16), letter, name) for address, letter, name in found if name != "_text"]
    return [(TEXT, "T", "_text"), (TEXT, "t", "all_0123456789"), *ours]


def random_lines(seed: int, count: int) -> list[Line]:
    """Names of few pieces and of many, some so long that their lengths take two bytes."""
    chance = random.Random(seed)  # noqa: S311 - the same lists every time

    def names() -> Iterator[str]:
        yield "all_0123456789"
        yield "".join(chance.choices("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", k=460))
        for number in range(count):
            if chance.random() < 0.03:
                size = chance.randrange(100, 480)
                yield "".join(chance.choices("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789", k=size))
            else:
                yield f"{''.join(chance.choices(PIECES, k=chance.randrange(1, 9)))}{number}"

    lines, address = [(TEXT, "T", "_text")], TEXT
    for name in names():
        lines.append((address, chance.choice("TtWDdRrBb"), name))
        address += chance.choice([0, 1, 16, 48])
    return lines


@pytest.mark.parametrize("content", ["a kernel's", "few", "many"])
def test_what_the_kernels_program_made_is_read(program: Program, content: str, tmp_path: Path) -> None:
    for number, options in enumerate(program.variants):
        folder = tmp_path / str(number)
        folder.mkdir()
        lines = of_a_kernel(folder) if content == "a kernel's" else random_lines(number, {"few": 60}.get(content, 5000))
        percpu = "--absolute-percpu" in options
        whole = sorted([*(PER_CPU if percpu else ()), *lines])
        wanted = [(a, "A" if percpu and a < TEXT else letter, name) for a, letter, name in whole]
        found = read_back(linked(program.path, options, whole, folder))
        long = re.search(
            r"^kallsyms_names:\n(?:.*\n)*?\t\.byte 0x[89a-f]", (folder / "tables.S").read_text(), re.MULTILINE
        )
        assert (long is not None) == (content != "a kernel's"), "lengths of two bytes"
        assert sorted(found) == sorted(wanted), options
        assert [address for address, _, _ in found] == sorted(address for address, _, _ in wanted)
