"""Types of functions: what gcc takes as compatible is what the tool takes so, whatever data the types came from."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from staticcall.model.image import Image
from staticcall.model.types import Prototype, TypeSource
from staticcall.read.btf_types import BtfTypes
from staticcall.read.dwarf_types import DwarfTypes
from staticcall.read.image import open_image
from tests.support.c_types import Universe, compile_object, complaints, require

COUNT = 60
BUILDS = {
    "gcc-dwarf5": ("gcc", "-gdwarf-5"),
    "gcc-64-bit-dwarf": ("gcc", "-gdwarf-5", "-gdwarf64"),
    "gcc-type-units": ("gcc", "-gdwarf-5", "-fdebug-types-section"),
    "gcc-compressed": ("gcc", "-gdwarf-5", "-gz"),
    "gcc-optimised": ("gcc", "-gdwarf-5", "-O2", "-ffunction-sections", "-fno-ipa-icf"),
    "clang-dwarf5": ("clang", "-gdwarf-5"),
    "clang-sections": ("clang", "-gdwarf-5", "-ffunction-sections", "-O1"),
    # These know neither restrict nor _Atomic, or not in all places.
    "gcc-dwarf4": ("gcc", "-gdwarf-4"),
    "gcc-dwarf2": ("gcc", "-gdwarf-2"),
    "clang-dwarf4": ("clang", "-gdwarf-4"),
}


def types_in(path: Path, universe: Universe, read: Callable[[Image], TypeSource]) -> list[Prototype]:
    """The types of the universe's functions as the tool reads them."""
    with open_image(path) as image:
        source = read(image)
        found = []
        for number in range(len(universe.functions)):
            (symbol,) = image.symbols.named(universe.name(number))
            type_ = source.type_of(symbol.name, symbol.address)
            assert isinstance(type_, Prototype), universe.functions[number]
            found.append(type_)
    return found


def check(universe: Universe, source: Path, types: list[Prototype]) -> None:
    """Compare all pairs of types, and the text of each, with what gcc says."""
    expected = universe.compatible(source)
    count = len(types)
    found = {(i, j) for i in range(count) for j in range(count) if types[i].agrees(types[j])}
    wrong = [(types[i].declared("one"), types[j].declared("other")) for i, j in sorted(expected ^ found)]
    assert not wrong
    # Neither all alike nor all different.
    assert count * 1.5 < len(expected) < count * count / 2
    declared = source.with_name("declared.c")
    # What is declared again must be as it was. No source can name what the compiler's own va_list is made of.
    texts = [f"extern {type_.declared(universe.name(number))};\n" for number, type_ in enumerate(types)]
    texts = [text.replace("struct __va_list_tag *", "__builtin_va_list") for text in texts]
    declared.write_text("".join([source.read_text(), *texts]))
    lines = declared.read_text().splitlines()
    assert [lines[line - 1] for line in sorted(complaints(declared))] == []


@pytest.mark.parametrize("build", BUILDS)
def test_dwarf_types_agree_where_gcc_says_so(build: str, tmp_path: Path) -> None:
    cc, *flags = BUILDS[build]
    require(cc)
    universe = Universe(len(build), COUNT, everything="-gdwarf-5" in flags)
    source = universe.write(tmp_path)
    check(universe, source, types_in(compile_object(source, *flags, cc=cc), universe, DwarfTypes))


def test_btf_types_agree_where_gcc_says_so(tmp_path: Path) -> None:
    require("pahole")
    universe = Universe(7, COUNT, everything=False)
    source = universe.write(tmp_path)
    # Pahole turns the DWARF of a linked file into BTF; without DWARF there is nothing else to read types from.
    program = tmp_path / "program"
    subprocess.run(
        ["gcc", "-nostdlib", "-static", "-Wl,-e,f0", compile_object(source), "-o", program], check=True, timeout=60
    )
    subprocess.run(["pahole", "-J", program], check=True, timeout=60)
    subprocess.run(["objcopy", "--strip-debug", program], check=True, timeout=60)
    check(universe, source, types_in(program, universe, BtfTypes))
