"""BTF put together by hand: kinds that no compiler here writes, bases of modules, and everything that can be wrong."""

from __future__ import annotations

import random
import struct
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from staticcall.errors import InputError, MalformedError, StaticcallError
from staticcall.model.types import Prototype, ResultKind
from staticcall.read.btf_types import BtfTypes
from staticcall.read.image import open_image
from tests.support.btf_build import (
    ARRAY,
    BOOLEAN,
    CONST,
    DATASEC,
    DECL_TAG,
    ENUM,
    ENUM64,
    FLOAT,
    FUNC,
    FWD,
    INT,
    PTR,
    RESTRICT,
    SIGNED,
    STRUCT,
    TYPE_TAG,
    TYPEDEF,
    UNION,
    VAR,
    VOLATILE,
    BtfBuilder,
    with_sections,
)
from tests.support.refusals import at_most, one_line
from tests.support.tool import staticcall, succeed

SOURCE = ".text\n" + "".join(f".globl {n}\n.type {n}, @function\n{n}: ret\n" for n in ("f", "g", "h", "_start"))
KEY = """\
.data
.globl __SCK__key
__SCK__key: .quad f
.section .static_call.text, "ax"
.globl __SCT__key
.type __SCT__key, @function
__SCT__key: .byte 0xe9
.long f - . - 4
.byte 0x0f, 0xb9, 0xcc
.section static_call_sites, "aw"
"""


@pytest.fixture(scope="module")
def assembled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An object of functions without any type data."""
    folder = tmp_path_factory.mktemp("assembled")
    (folder / "functions.s").write_text(SOURCE + KEY)
    subprocess.run(["as", folder / "functions.s", "-o", folder / "functions.o"], check=True)
    return folder / "functions.o"


@pytest.fixture(scope="module")
def linked(assembled: Path) -> Path:
    """The same as a program."""
    target = assembled.with_name("program")
    subprocess.run(["ld", assembled, "-o", target], check=True)
    return target


def type_in(path: Path, name: str, kernel: Path | None = None) -> Prototype | None:
    with ExitStack() as files:
        image = files.enter_context(open_image(path))
        other = files.enter_context(open_image(kernel)) if kernel else None
        (symbol,) = image.symbols.named(name)
        return BtfTypes(image, other).type_of(name, symbol.address)


def text_in(path: Path, name: str, kernel: Path | None = None) -> str | None:
    type_ = type_in(path, name, kernel)
    return type_.declared(name) if type_ else None


def test_every_kind_has_its_text(linked: Path, tmp_path: Path) -> None:
    btf = BtfBuilder()
    integer = btf.add(INT, "int", 4, SIGNED | 32)
    boolean = btf.add(INT, "_Bool", 1, BOOLEAN | 8)
    size = btf.add(TYPEDEF, "size_t", btf.add(INT, "long unsigned int", 8, 64))
    tag = btf.add(STRUCT, "job", 8, btf.string("x"), integer, 0, count=1)
    user = btf.add(PTR, "", btf.add(TYPE_TAG, "user", tag))
    double = btf.add(FLOAT, "double", 8)
    wide = btf.add(ENUM64, "wide", 8, btf.string("A"), 0, 1, count=1)
    state = btf.add(ENUM, "state", 4, btf.string("B"), 1, count=1)
    forward = btf.add(PTR, "", btf.add(FWD, "hidden", flag=True))
    row = btf.add(PTR, "", btf.add(ARRAY, "", 0, integer, integer, 3))
    text = btf.add(RESTRICT, "", btf.add(PTR, "", btf.add(CONST, "", btf.add(INT, "char", 1, SIGNED | 8))))
    back = btf.add(PTR, "", btf.prototype(0, btf.add(PTR), 0))
    cell = btf.add(UNION, "cell", 4)
    function = btf.function("f", user, size, double, wide, state, forward, row, text, back, cell, boolean, integer)
    btf.add(DECL_TAG, "kfunc", function, -1)
    btf.add(DATASEC, ".data", 8, btf.add(VAR, "v", integer, 1), 0, 4, count=1)
    btf.function("g", btf.add(VOLATILE, "", integer), 0)
    path = with_sections(linked, tmp_path, {".BTF": bytes(btf)})
    assert text_in(path, "f") == (
        "struct job *f(size_t, double, enum wide, enum state, union hidden *, int (*)[3], const char *restrict,"
        " void (*)(void *, ...), union cell, _Bool, int)"
    )
    assert text_in(path, "g") == "volatile int g(...)"
    assert text_in(path, "h") is None


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        *(("void", ResultKind.VOID), ("int", ResultKind.INTEGER), ("enum", ResultKind.INTEGER)),
        *(("pointer", ResultKind.POINTER), ("struct", ResultKind.OTHER), ("float", ResultKind.OTHER)),
        ("big", ResultKind.OTHER),
    ],
)
def test_results_are_told_apart(kind: str, expected: ResultKind, linked: Path, tmp_path: Path) -> None:
    btf = BtfBuilder()
    results = {
        "void": 0,
        "int": btf.add(INT, "int", 4, SIGNED | 32),
        "enum": btf.add(ENUM, "e", 4),
        "pointer": btf.add(PTR, "", 0),
        "struct": btf.add(STRUCT, "s", 8),
        "float": btf.add(FLOAT, "float", 4),
        "big": btf.add(INT, "__int128", 16, SIGNED | 128),
    }
    btf.function("f", btf.add(TYPEDEF, "t", btf.add(CONST, "", results[kind])))
    type_ = type_in(with_sections(linked, tmp_path, {".BTF": bytes(btf)}), "f")
    assert type_ is not None
    assert type_.result is expected


def test_functions_of_one_name_count_where_they_agree(linked: Path, tmp_path: Path) -> None:
    btf = BtfBuilder()
    integer = btf.add(INT, "int", 4, SIGNED | 32)
    btf.function("f", integer)
    btf.function("f", btf.add(TYPEDEF, "word", integer))
    btf.function("g", integer)
    btf.function("g", 0)
    path = with_sections(linked, tmp_path, {".BTF": bytes(btf)})
    assert text_in(path, "f") == "int f(void)"
    assert text_in(path, "g") is None


def test_very_many_functions_of_one_name_say_nothing(linked: Path, tmp_path: Path) -> None:
    btf = BtfBuilder()
    integer = btf.add(INT, "int", 4, SIGNED | 32)
    much = btf.prototype(integer, *[integer] * 1500)
    for _ in range(10_000):
        btf.function("f", much)
    path = with_sections(linked, tmp_path, {".BTF": bytes(btf)})
    with at_most(20):
        assert text_in(path, "f") is None


def test_a_module_goes_on_from_its_kernels_data(assembled: Path, linked: Path, tmp_path: Path) -> None:
    kernel = BtfBuilder()
    tag = kernel.add(STRUCT, "job", 8)
    kernel.function("h", 0)
    module = BtfBuilder(kernel)
    module.function("f", module.add(PTR, "", tag))
    vmlinux = with_sections(linked, tmp_path, {".BTF": bytes(kernel)})
    path = with_sections(assembled, tmp_path, {".BTF": bytes(module)})
    assert text_in(path, "f", vmlinux) == "struct job *f(void)"
    assert text_in(path, "f") is None
    # That the kernel has a function of this name says nothing of the module's own.
    assert text_in(path, "h", vmlinux) is None
    other = BtfBuilder()
    for number in range(9):
        other.add(STRUCT, f"another_structure_{number}", 8)
    stranger = with_sections(linked, tmp_path, {".BTF": bytes(other)})
    with pytest.raises(InputError, match="has other type data than the kernel") as caught:
        text_in(path, "f", stranger)
    assert caught.value.path == stranger


def test_a_module_with_its_own_base_needs_no_kernel(assembled: Path, tmp_path: Path) -> None:
    base = BtfBuilder()
    tag = base.add(STRUCT, "job", 8)
    module = BtfBuilder(base)
    module.function("f", 0, module.add(PTR, "", tag))
    path = with_sections(assembled, tmp_path, {".BTF": bytes(module), ".BTF.base": bytes(base)})
    assert text_in(path, "f") == "void f(struct job *)"


# ---- what is wrong ----


def _circle(btf: BtfBuilder) -> int:
    return btf.add(TYPEDEF, "a", btf.next + 1) and btf.add(TYPEDEF, "b", btf.next - 1)


def _bush(btf: BtfBuilder) -> int:
    """Functions that take two pointers to functions that take two pointers: small, and without an end in C."""
    number = btf.add(INT, "int", 4, SIGNED | 32)
    for _ in range(40):
        number = btf.add(PTR, "", btf.prototype(number, number, number))
    return number


def _names(btf: BtfBuilder) -> int:
    """Pointers to functions of 1000 parameters, all of one type with a very long name."""
    number = btf.add(INT, "x" * 100_000, 4, SIGNED | 32)
    return btf.add(PTR, "", btf.prototype(number, *[number] * 1000))


def _members(btf: BtfBuilder) -> int:
    """A structure without a tag and with many members, many times over."""
    number = btf.add(INT, "int", 4, SIGNED | 32)
    members = [word for place in range(20_000) for word in (0, number, place)]
    tagless = btf.add(STRUCT, "", 8, *members, count=20_000)
    return btf.add(PTR, "", btf.prototype(number, *[tagless] * 1000))


DAMAGED: dict[str, Callable[[BtfBuilder], int]] = {
    "a typedef of itself": lambda btf: btf.add(TYPEDEF, "a", btf.next),
    "a circle": _circle,
    "a pointer to itself": lambda btf: btf.add(PTR, "", btf.next),
    "a bush": _bush,
    "long names": _names,
    "many members": _members,
    "no such type": lambda _: 0x7FFFFFFF,
    "a variable": lambda btf: btf.add(VAR, "v", 0, 1),
    "a name outside": lambda btf: btf.add(STRUCT, 0x7FFFFFF0, 8),
    "an array of itself": lambda btf: btf.add(ARRAY, "", 0, btf.next, 0, 3),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_type_without_an_end_is_refused(what: str, linked: Path, tmp_path: Path) -> None:
    btf = BtfBuilder()
    btf.function("f", DAMAGED[what](btf))
    btf.function("g", 0)
    path = with_sections(linked, tmp_path, {".BTF": bytes(btf)})
    with at_most(20), pytest.raises(MalformedError):
        type_in(path, "f")
    wish = ("patch", path, "--dry-run", "--set", "key=g")
    outcome = staticcall(*wish)
    assert outcome.code == 3
    assert str(path) in one_line(outcome)
    # What is not compared is not in the way.
    assert "types not compared: " in succeed(*wish, "--force-type")


@pytest.mark.parametrize("size", [0, 10, 23, 24, 30, -1])
def test_data_that_ends_early_is_refused(size: int, linked: Path, tmp_path: Path) -> None:
    btf = BtfBuilder()
    btf.function("f", btf.add(INT, "int", 4, SIGNED | 32))
    path = with_sections(linked, tmp_path, {".BTF": bytes(btf)[:size] or b"\0"})
    with pytest.raises(MalformedError):
        type_in(path, "f")


def test_a_function_that_is_no_function_is_refused(linked: Path, tmp_path: Path) -> None:
    btf = BtfBuilder()
    btf.add(FUNC, "f", btf.add(INT, "int", 4, SIGNED | 32))
    with pytest.raises(MalformedError, match="not that of a function"):
        type_in(with_sections(linked, tmp_path, {".BTF": bytes(btf)}), "f")


def test_whatever_is_in_it_the_end_is_a_type_or_an_error(linked: Path, tmp_path: Path) -> None:
    btf = BtfBuilder()
    integer = btf.add(INT, "int", 4, SIGNED | 32)
    tag = btf.add(STRUCT, "", 8, btf.string("x"), integer, 0, count=1)
    named = btf.add(TYPEDEF, "pair", tag)
    call = btf.add(PTR, "", btf.prototype(integer, named, 0))
    btf.function(
        "f", btf.add(ENUM, "e", 4, btf.string("A"), 7, count=1), call, btf.add(ARRAY, "", 0, named, integer, 3)
    )
    good = bytes(btf)
    path = with_sections(linked, tmp_path, {".BTF": good})
    whole = path.read_bytes()
    place, chance, ends = whole.index(good), random.Random(5), set()  # noqa: S311 - the same in every run
    for _ in range(1500):
        bad = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(bad))
            if chance.random() < 0.5:
                bad[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
            else:
                struct.pack_into("<I", bad, at & ~3 if at < len(bad) - 4 else 0, chance.randrange(btf.next + 2))
        path.write_bytes(whole[:place] + bad + whole[place + len(bad) :])
        try:
            with at_most(20):
                ends.add("a type" if text_in(path, "f") else "nothing")
        except StaticcallError:
            ends.add("an error")
    assert ends == {"a type", "nothing", "an error"}
