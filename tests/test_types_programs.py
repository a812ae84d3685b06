"""Types of user programs' functions, by DWARF and kCFI: what is done, refused and said because of them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest

from tests.support import toolchain
from tests.support.c_types import require
from tests.support.programs import COMPILERS, Builder, Toolchain
from tests.support.tool import refused, report, succeed
from tests.support.toolchain import Compiler

_HEADER = toolchain.source("calls").parents[1]

# A key that leads somewhere, one that is NULL, one that returns 0; functions of some types.
SOURCE = """\
#include "static_call_fixture.h"
struct job { int size; };
typedef int size_type;
enum state { IDLE };
SC_TARGET int first(struct job *job, long count) { return job->size + count; }
SC_TARGET size_type same(struct job *job, const long count) { return job->size - count; }
SC_TARGET int other_tag(struct work *work, long count) { return !!work + count; }
SC_TARGET unsigned other_result(struct job *job, long count) { return job->size * count; }
SC_TARGET int constant(const struct job *job, long count) { return job->size & count; }
SC_TARGET int fewer(struct job *job) { return job->size; }
SC_TARGET int variadic(struct job *job, long count, ...) { return job->size ^ count; }
SC_TARGET void nothing(struct job *job, long count) { job->size = count; }
SC_TARGET struct job by_value(int size) { return (struct job){size}; }
SC_TARGET double half(int size) { return size / 2.0; }
SC_TARGET struct job *pointer(int size) { static struct job job; job.size = size; return &job; }
SC_TARGET enum state state(int size) { return size; }
SC_TARGET _Bool flag(int size) { return size; }
SC_TARGET long __static_call_return0(void) { return 0; }
SC_DEFINE(plain, first);
SC_DEFINE(void_key, nothing);
SC_DEFINE(struct_key, by_value);
SC_DEFINE(double_key, half);
SC_DEFINE(pointer_key, pointer);
SC_DEFINE(enum_key, state);
SC_DEFINE(bool_key, flag);
SC_DEFINE_NULL(null_key);
extern __typeof__(first) __SCT__null_key;
SC_DEFINE(zero_key, __static_call_return0);
extern __typeof__(first) __SCT__zero_key;
SC_DEFINE_NULL(unknown_key);
int main(void) { return __SCT__null_key(0, 1) + __SCT__zero_key(0, 1); }
"""


def missing(what: str) -> NoReturn:
    (pytest.fail if os.environ.get("CI") else pytest.skip)(f"not installed: {what}")


def kcfi_compiler() -> str:
    """A clang that knows -fsanitize=kcfi, which came with version 16."""
    names = ["clang", *(f"clang-{version}" for version in range(40, 15, -1))]
    for name in filter(shutil.which, names):
        probe = [name, "-fsanitize=kcfi", "-x", "c", "-c", os.devnull, "-o", os.devnull]
        if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
            return name
    return missing("a clang with -fsanitize=kcfi")


def build(folder: Path, cc: str, *flags: str) -> Path:
    """The source as a linked program, or as an object with -c."""
    source, target = folder / "source.c", folder / "program"
    source.write_text(SOURCE.replace("SC_TARGET int other_tag", "struct work;\nSC_TARGET int other_tag"))
    command: list[str | Path] = [cc, "-O1", "-fno-pie", "-no-pie", f"-I{_HEADER}", *flags, source, "-o", target]
    subprocess.run(command, check=True, capture_output=True, timeout=toolchain.TIMEOUT_SECONDS)
    return target


@pytest.fixture(
    scope="module",
    params=[f"{cc}-{kind}" for cc in ("gcc", "clang", "newest clang") for kind in ("linked", "4-linked", "object")],
)
def typed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program with DWARF."""
    cc, *rest = request.param.split("-")
    if cc == "newest clang":
        cc = kcfi_compiler()
    else:
        require(cc)
    flags = ["-gdwarf-4" if "4" in rest else "-gdwarf-5", *(["-c"] if "object" in rest else [])]
    if cc.startswith("clang"):
        flags += ["-Wno-unused-command-line-argument"]
    return build(tmp_path_factory.mktemp(request.param), cc, *flags)


def _declares(program: Path) -> bool:
    """Whether the compiler left a word about functions that are only declared: clang does since version 15."""
    dump: list[str | Path] = ["readelf", "--debug-dump=info", program]
    listing = subprocess.run(dump, capture_output=True, text=True, check=True).stdout
    return re.search(r"DW_AT_name .*: __SCT__null_key$", listing, re.MULTILINE) is not None


REFUSED = {
    "plain=other_tag": "int other_tag(struct work *, long) instead of int first(struct job *, long)",
    "plain=other_result": "unsigned int other_result(struct job *, long) instead of int first(struct job *, long)",
    "plain=constant": "int constant(const struct job *, long) instead of",
    "plain=fewer": "int fewer(struct job *) instead of",
    "plain=variadic": "int variadic(struct job *, long, ...) instead of",
    "plain=nothing": "void nothing(struct job *, long) instead of",
    "void_key=first": "int first(struct job *, long) instead of void nothing(struct job *, long)",
    "null_key=nothing": "void nothing(struct job *, long) instead of int null_key(struct job *, long)",
    "zero_key=fewer": "int fewer(struct job *) instead of int zero_key(struct job *, long)",
}


@pytest.mark.parametrize("wish", REFUSED)
def test_a_function_of_another_type_is_refused_with_both(wish: str, typed: Path) -> None:
    if wish.startswith(("null", "zero")) and not _declares(typed):
        assert "types not compared" in succeed("patch", typed, "--dry-run", "--set", wish)
        return
    line = refused("patch", typed, "--dry-run", "--set", wish, code="type-mismatch")
    assert REFUSED[wish] in line
    assert "by DWARF" in line
    out = succeed("patch", typed, "--dry-run", "--set", wish, "--force-type")
    assert f"forced although {wish.partition('=')[2]} is no function of key" in out


@pytest.mark.parametrize("wish", ["plain=same", "null_key=same", "zero_key=same"])
def test_a_function_of_the_same_type_is_taken(wish: str, typed: Path) -> None:
    out = succeed("patch", typed, "--dry-run", "--set", wish)
    if wish.startswith(("null", "zero")) and not _declares(typed):
        assert "types not compared" in out
        return
    assert "types agree by DWARF: size_type same(struct job *, " in out


@pytest.mark.parametrize("key", ["void_key", "struct_key", "double_key"])
def test_only_integers_and_pointers_are_cleared(key: str, typed: Path) -> None:
    line = refused("patch", typed, "--dry-run", "--set", f"{key}=RET0", code="ret0-returns-no-integer")
    assert f"key {key} is for functions that return neither an integer nor a pointer by DWARF" in line
    succeed("patch", typed, "--dry-run", "--set", f"{key}=RET0", "--force-type")


@pytest.mark.parametrize("key", ["plain", "pointer_key", "enum_key", "bool_key", "null_key"])
def test_what_is_an_integer_or_a_pointer_may_be_0(key: str, typed: Path) -> None:
    out = succeed("patch", typed, "--dry-run", "--set", f"{key}=RET0")
    if key == "null_key" and not _declares(typed):
        assert "types not compared" in out
        return
    assert f"returns a{' pointer' if key == 'pointer_key' else 'n integer'} by DWARF: " in out


def test_nothing_is_known_of_a_key_without_a_declaration(typed: Path) -> None:
    for target in ("first", "RET0"):
        out = succeed("patch", typed, "--dry-run", "--set", f"unknown_key={target}")
        assert "types not compared: no type data of key unknown_key" in out


@pytest.mark.parametrize("cc", COMPILERS)
def test_null_is_for_keys_that_return_nothing(cc: Compiler, built: Builder) -> None:
    """The keys of `calls` have sites, which NULL would leave without a result."""
    program = built("calls", "exec", Toolchain(cc, "bfd"))
    line = refused("patch", program, "--dry-run", "--set", "beta=NULL", code="null-returns-value")
    assert "returns a value by DWARF (int beta_plain(int))" in line
    for force in (("--force-type",), ("--force", "null-returns-value")):
        assert "forced although" in succeed("patch", program, "--dry-run", "--set", "beta=NULL", *force)
    assert "types not compared: no type data of key hook" in succeed(
        "patch", program, "--dry-run", "--set", "hook=hook_count"
    )


def test_without_type_data_a_change_is_made_and_that_is_said(tmp_path: Path) -> None:
    program = build(tmp_path, "gcc")
    wish = ("patch", program, "-o", tmp_path / "out", "--set", "plain=nothing")
    assert "types not compared: no type data of key plain" in succeed(*wish)
    assert {key["name"]: key["func"] for key in report(tmp_path / "out")["keys"]}["plain"] == "nothing"


# ---- kCFI ----


@pytest.fixture(scope="module", params=["linked", "object", "padded"])
def hashed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program with hashes of types in front of its functions, and no other type data."""
    flags = {"linked": (), "object": ("-c",), "padded": ("-fpatchable-function-entry=11,11",)}[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    return build(folder, kcfi_compiler(), "-fsanitize=kcfi", "-Wno-unused-command-line-argument", *flags)


def _hash_by_objdump(program: Path, function: str) -> int:
    listing = subprocess.run(
        ["objdump", "-dw", "--no-show-raw-insn", f"--disassemble=__cfi_{function}", program],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    (value,) = re.findall(r"mov +\$0x([0-9a-f]+),%eax", listing)
    return int(value, 16)


def test_hashes_tell_functions_of_two_types_apart(hashed: Path) -> None:
    line = refused("patch", hashed, "--dry-run", "--set", "plain=other_tag", code="type-mismatch")
    own, new = (f"{_hash_by_objdump(hashed, name):#010x}" for name in ("first", "other_tag"))
    assert f"by kCFI: {new} instead of {own}" in line
    succeed("patch", hashed, "--dry-run", "--set", "plain=other_tag", "--force-type")


def test_hashes_of_functions_of_one_type_are_the_same(hashed: Path) -> None:
    out = succeed("patch", hashed, "--dry-run", "--set", "plain=same")
    assert f"types agree by kCFI: {_hash_by_objdump(hashed, 'same'):#010x}" in out


def test_a_hash_does_not_say_what_is_returned(hashed: Path) -> None:
    assert "types not compared" in succeed("patch", hashed, "--dry-run", "--set", "plain=RET0")
