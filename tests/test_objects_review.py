"""Names that stand for one place, keys that a linker may replace, and annotate among many files and signals."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import elf_object, objtool
from tests.support.modules import Development
from tests.support.tool import refused, staticcall, succeed
from tests.support.toolchain import TIMEOUT_SECONDS

_TRAMPOLINE = """
asm(".pushsection .static_call.text" GROUP(__SCT__x, "ax") "\\n.balign 4\\n" BINDING " __SCT__x\\n"
    ".type __SCT__x, @function\\n__SCT__x: jmp " TARGET "\\n.byte 0x0f, 0xb9, 0xcc\\n"
    ".size __SCT__x, . - __SCT__x\\n.popsection\\n"
    ".pushsection .data.key" GROUP(__SCK__x, "aw") "\\n.balign 8\\n" BINDING " __SCK__x\\n"
    ".type __SCK__x, @object\\n__SCK__x: .quad " TARGET ", 0\\n.size __SCK__x, 16\\n.popsection");
"""
_PLAIN = """
#define GROUP(name, flags) ", \\"" flags "\\""
#define BINDING ".globl"
"""
_GROUPED = """
#define GROUP(name, flags) "." #name ", \\"" flags "G\\", @progbits, " #name ", comdat"
#define BINDING ".globl"
"""
_WEAK = _PLAIN.replace(".globl", ".weak")
# One function, two names; the weak one is another function's where that is defined.
_ALIASES = """
int __SCT__x(int a);
int caller(int a) { return __SCT__x(a) + 1; }
VISIBLE __attribute__((noinline, used)) int other(int a) { return a + 10; }
__attribute__((weak, alias("other"))) int replaced(int a);
int first(int a) { return a + 20; }
"""
_MAIN = """
#include <stdio.h>
int caller(int a);
int replaced(int a) { return a + 30; }
int main(void) { printf("%d\\n", caller(1)); }
"""
_CALLER = "int __SCT__x(int a); int caller(int a) { return __SCT__x(a) + 1; }\nint first(int a) { return a; }\n"
_HUNDRED = 100


def _compile(folder: Path, name: str, source: str, *options: str) -> Path:
    path, output = folder / f"{name}.c", folder / f"{name}.o"
    path.write_text(source)
    subprocess.run(["gcc", "-O2", *options, "-c", path, "-o", output], check=True, timeout=TIMEOUT_SECONDS)
    return output


def _says(folder: Path, *objects: Path) -> str:
    program = folder / "program"
    subprocess.run(["gcc", *objects, "-o", program], check=True, timeout=TIMEOUT_SECONDS)
    return subprocess.check_output([program], text=True, timeout=TIMEOUT_SECONDS)


def _with_call(source: str, target: str, kind: str = _PLAIN) -> str:
    return f'{kind}#define TARGET "{target}"\n{source}{_TRAMPOLINE}'


@pytest.mark.parametrize("visible", ["", "static"], ids=["global", "local"])
@pytest.mark.parametrize(("present", "options"), [("first", ["--set=x=replaced"]), ("replaced", ["--bind"])])
def test_of_two_names_of_a_function_the_one_that_is_meant_is_called(
    tmp_path: Path, visible: str, present: str, options: list[str]
) -> None:
    original = _compile(tmp_path, "original", _with_call(_ALIASES, present), f"-DVISIBLE={visible}")
    patched, main = tmp_path / "patched.o", _compile(tmp_path, "main", _MAIN)
    succeed("patch", original, "-o", patched, "--policy=kernel", *options)
    succeed("verify", original, patched)
    assert _says(tmp_path, patched, main) == "32\n"


@pytest.mark.parametrize("kind", [_GROUPED, _WEAK], ids=["grouped", "weak"])
def test_a_key_that_a_linker_may_take_from_another_object_stays(tmp_path: Path, kind: str) -> None:
    original, patched = _compile(tmp_path, "original", _with_call(_CALLER, "first", kind)), tmp_path / "patched.o"
    line = refused("patch", original, "-o", patched, "--policy=kernel", "--set=x=second", code="key-elsewhere")
    assert "section group" in line
    assert not patched.exists()
    succeed("patch", original, "-o", patched, "--policy=kernel", "--bind")
    assert patched.read_bytes() == original.read_bytes()


@pytest.mark.parametrize("order", [("local", "global"), ("global", "local")], ids="-".join)
def test_a_local_key_of_the_same_name_does_not_stand_for_the_global_one(
    development: Development, tmp_path: Path, order: tuple[str, str]
) -> None:
    parts = {
        binding: _compile(
            tmp_path, binding, f'{call} asm(".data\\n{mark}\\n.balign 8\\n__SCK__x: .quad 0, 0\\n.text");'
        )
        for binding, mark, call in (
            ("local", "", "void __SCT__x(void); void one(void) { __SCT__x(); __SCT__x(); }"),
            ("global", ".globl __SCK__x", "void __SCT__x(void); void two(void) { __SCT__x(); __SCT__x(); }"),
        )
    }
    combined, ours, theirs = tmp_path / "combined.o", tmp_path / "ours.o", tmp_path / "theirs.o"
    command = ["ld", "-r", *(str(parts[binding]) for binding in order), "-o", str(combined)]
    subprocess.run(command, check=True, timeout=TIMEOUT_SECONDS)
    succeed("annotate", combined, "-o", ours)
    assert objtool.annotate(development.objtool, combined, theirs).code == 0
    assert elf_object.records(elf_object.read(ours)) == elf_object.records(elf_object.read(theirs))
    keys = subprocess.check_output(["readelf", "-sW", ours], text=True, timeout=TIMEOUT_SECONDS)
    (number,) = (line.split(":")[0] for line in keys.splitlines() if " GLOBAL " in line and "__SCK__x" in line)
    entries = subprocess.check_output(["readelf", "-rW", ours], text=True, timeout=TIMEOUT_SECONDS)
    named = [line.split()[1][:8] for line in entries.splitlines() if "__SCK__x" in line]
    assert {int(symbol, 16) for symbol in named} == {int(number)}
    # The proof holds the records to that symbol, too.
    wrong, elf = bytearray(ours.read_bytes()), elf_object.read(ours)
    local = next(n for n, symbol in enumerate(elf.symbols) if symbol.name == "__SCK__x" and n != int(number))
    (table,) = elf.named(".rela.static_call_sites")
    for entry, relocation in enumerate(elf.relocations(table)):
        if relocation.symbol == int(number):
            wrong[table.offset + 24 * entry + 12 : table.offset + 24 * entry + 16] = local.to_bytes(4, "little")
    theirs.write_bytes(wrong)
    outcome = staticcall("verify", combined, theirs)
    assert outcome.code == 5
    assert "a later one has its name" in outcome.err


def test_sites_that_came_in_beside_a_table_go_by_their_trampoline(tmp_path: Path) -> None:
    original = _compile(tmp_path, "original", _with_call(_CALLER, "first"))
    second = _with_call(_CALLER, "first").replace("SCT__x", "SCT__y").replace("SCK__x", "SCK__y")
    other = _compile(tmp_path, "other", second.replace("caller", "caller2").replace("first", "first2"))
    annotated, mixed, patched = (tmp_path / f"{name}.o" for name in ("annotated", "mixed", "patched"))
    succeed("annotate", original, "-o", annotated)
    subprocess.run(["ld", "-r", annotated, other, "-o", mixed], check=True, timeout=TIMEOUT_SECONDS)
    said = succeed("patch", mixed, "-o", patched, "--policy=kernel", "--set=y=first", "--bind")
    assert "y: first2 -> first, 0 sites direct" in said
    entries = subprocess.check_output(["readelf", "-rW", patched], text=True, timeout=TIMEOUT_SECONDS)
    assert entries.count("__SCT__y - 4") == 1
    assert entries.count("__SCT__x - 4") == 0
    assert entries.count("first - 4") == 3  # both trampolines, and the recorded site


@pytest.mark.parametrize("section", ["", "a\nb", "a\udcff"], ids=["empty", "two-lines", "no-text"])
def test_a_section_needs_a_name(tmp_path: Path, section: str) -> None:
    original, output = _compile(tmp_path, "original", _with_call(_CALLER, "first")), tmp_path / "annotated.o"
    outcome = staticcall("annotate", original, "-o", output, "--section", section)
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert not output.exists()


@pytest.mark.parametrize("section", [".text", ".symtab", ".data.key"])
def test_a_section_that_is_something_else_is_no_table(tmp_path: Path, section: str) -> None:
    original, output = _compile(tmp_path, "original", _with_call(_CALLER, "first")), tmp_path / "annotated.o"
    outcome = staticcall("annotate", original, "-o", output, "--section", section)
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (3, "", 1)
    assert f"{section} that is no table" in outcome.err
    assert not output.exists()


def test_a_table_of_any_name_is_known_after_a_partial_link(tmp_path: Path) -> None:
    original, output = _compile(tmp_path, "original", _with_call(_CALLER, "first")), tmp_path / "annotated.o"
    linked, again = tmp_path / "linked.o", tmp_path / "again.o"
    succeed("annotate", original, "-o", output, "--section", "my_calls")
    subprocess.run(["ld", "-r", output, "-o", linked], check=True, timeout=TIMEOUT_SECONDS)
    assert "has its table already" in succeed("annotate", linked, "-o", again, "--section", "my_calls")
    assert again.read_bytes() == linked.read_bytes()


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_without_a_standard_output_there_is_nothing_to_say(tmp_path: Path, jobs: str) -> None:
    original = _compile(tmp_path, "original", _with_call(_CALLER, "first"))
    other, folder = Path(shutil.copy(original, tmp_path / "other.o")), tmp_path / "annotated"
    folder.mkdir()
    command = [sys.executable, "-m", "staticcall", "annotate", "-j", jobs, "--output-dir", folder, original, other]
    closed = ["sh", "-c", 'exec "$@" >&-', "sh", *map(str, command)]
    done = subprocess.run(closed, stderr=subprocess.PIPE, check=False, timeout=TIMEOUT_SECONDS)
    assert (done.returncode, done.stderr) == (0, b"")
    assert sorted(path.name for path in folder.iterdir()) == ["original.o", "other.o"]


def test_an_interruption_leaves_whole_files_and_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "annotated"
    folder.mkdir()
    calls = "".join(f"int f{n}(int a) {{ return __SCT__x(a) + {n}; }}\n" for n in range(_HUNDRED))
    original = _compile(tmp_path, "original", _with_call(_CALLER + calls, "first"))
    files = [shutil.copy(original, tmp_path / f"{n}.o") for n in range(20 * _HUNDRED)]
    succeed("annotate", original, "-o", tmp_path / "whole.o")
    command = [sys.executable, "-u", "-m", "staticcall", "annotate", "-j", "3", "--output-dir", folder, *files]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        # As a terminal does: to all processes of the group.
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=TIMEOUT_SECONDS)
    assert (process.returncode, said) == (130, b"staticcall: interrupted\n")
    whole = (tmp_path / "whole.o").read_bytes()
    assert {path.suffix for path in folder.iterdir()} == {".o"}
    assert all(path.read_bytes() == whole for path in folder.iterdir())


def test_every_record_is_shown_on_request(tmp_path: Path) -> None:
    original, output = _compile(tmp_path, "original", _with_call(_CALLER, "first")), tmp_path / "annotated.o"
    lines = succeed("annotate", "-v", original, "-o", output).splitlines()
    (record,) = elf_object.records(elf_object.read(output))
    assert lines == [f"{original}: 1 record", f"  .text+{record.offset:#x} call x"]
