"""Pins that would not hold, or that would hold what nobody can live with."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.header import INCLUDE
from tests.support.tool import refused, report, succeed

NULL_KEYS = """
#define KEY(name) __asm__(".data\\n.balign 8\\n.globl __SCK__" name "\\n__SCK__" name ": .quad 0\\n" \
    ".text\\n.balign 4\\n.globl __SCT__" name "\\n__SCT__" name ": ret\\nint3\\nnop\\nnop\\nnop\\nud1 %esp,%ecx\\n");
#define CALL(name) __asm__ volatile("1: call __SCT__" name "\\n.pushsection static_call_sites,\\"a\\"\\n" \
    ".long 1b - ., __SCK__" name " - .\\n.popsection" ::: "memory")
KEY("value")
KEY("nothing")
KEY("other")
int __SCT__value(void);
void __SCT__nothing(void);
int (*volatile never)(void);
int main(void)
{
    CALL("value");
    CALL("nothing");
    CALL("other");
    if (never) {
        never = __SCT__value;
        __SCT__nothing();
    }
    return 0;
}
"""


def test_no_site_is_left_without_a_result_for_ever(tmp_path: Path) -> None:
    """A key may be NULL until it is first used; a pinned site would never see what it is led to then."""
    source, program = tmp_path / "null.c", tmp_path / "null"
    source.write_text(NULL_KEYS)
    subprocess.run(["gcc", "-g", "-O1", "-no-pie", source, "-o", program], check=True)
    for wish in ("--pin=value", "--pin=value --set=value=NULL", "--pin=nothing --pin=value"):
        message = refused("patch", program, "--dry-run", "--policy=kernel", *wish.split(), code="null-returns-value")
        assert "key value returns a value by DWARF (int value(void))" in message
    out = succeed("patch", program, "--dry-run", "--pin=value", "--policy=kernel", "--force=null-returns-value")
    assert "value: 1 site pinned to NULL" in out
    assert "forced although" in out
    out = succeed("patch", program, "--dry-run", "--pin=nothing", "--policy=kernel")
    assert "nothing: 1 site pinned to NULL" in out
    assert "returns nothing by DWARF: void nothing(void)" in out
    # Nothing becomes permanent where the policy leaves the site to its trampoline.
    assert "value: 0 sites pinned" in succeed("patch", program, "--dry-run", "--pin=value", "--policy=torvalds")


HEADER = """
#include "staticcall.h"
int one(int);
DECLARE_STATIC_CALL(scale, one);
DECLARE_STATIC_CALL(other, one);
inline __attribute__((noinline)) int in_group(int x) { return static_call(scale)(x) + static_call(other)(x); }
"""
DEFINITIONS = """
#include "calls.h"
int one(int x) { return x + 1; }
DEFINE_STATIC_CALL(scale, one);
DEFINE_STATIC_CALL(other, one);
int use(int x) { return in_group(x) + static_call(scale)(x) + static_call(other)(x); }
"""


@pytest.mark.parametrize("wish", ["--pin=scale", "--pin=scale --set=scale=NULL --force=null-returns-value"])
def test_a_site_that_a_linker_may_take_from_another_object_is_not_pinned(wish: str, tmp_path: Path) -> None:
    """The other object's copy of an inline function still has its record, and follows the key."""
    path, annotated = tmp_path / "calls.o", tmp_path / "annotated.o"
    (tmp_path / "calls.h").write_text(HEADER)
    source = tmp_path / "calls.cc"
    source.write_text(DEFINITIONS)
    subprocess.run(["g++", "-O1", "-fPIE", f"-I{INCLUDE}", "-c", source, "-o", path], check=True)
    succeed("annotate", path, "--section=static_call_sites", "-o", annotated)
    sites = [site["section"] for site in report(annotated)["sites"] if site["key"] == "scale"]
    assert len(set(sites)) == len(sites) == 2
    message = refused("patch", annotated, "--dry-run", "--policy=kernel", *wish.split(), code="site-elsewhere")
    assert next(section for section in sites if section != ".text") in message
    assert "pin in the linked file" in message
