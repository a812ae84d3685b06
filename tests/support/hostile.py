"""Objects whose static calls have names that mean something to whoever shows them."""

from __future__ import annotations

import subprocess
from pathlib import Path

# What a spreadsheet would take for a formula, what would break a table or a line, what HTML and Markdown obey.
NAMES = (
    "=1+2",
    "+1",
    "-1",
    "@SUM(A1)",
    "\ttab",
    "'quoted",
    'a"b',
    "a,b",
    "a b",
    "=cmd|' /C calc'!A0",
    "\n=1+2",
    " \u00a0=1+2",
    "\uff1d1+2",
    "a|b",
    "a`b``c",
    "a\nb\r\nc",
    "a\n| b |",
    "</code></details><script>alert(1)</script>",
    "![x](http://example.org/x.png)",
    "[x](1)",
    "**bold** @someone #1",
    "\\",
    "&amp;&#96;",
    "\x1b[31mred",
    "\u202eright\u2028to left",
    "\u00fc\U0001f600",
)


def object_named(path: Path, name: str) -> Path:
    """Make an object with a call and a jump to the trampoline of a static call of this name."""
    source = ".text\n.globl __SCT__any\ncaller: call __SCT__any\n jmp __SCT__any\n"
    subprocess.run(["as", "-o", path, "-"], input=source.encode(), check=True)
    subprocess.run(["objcopy", "--redefine-sym", f"__SCT__any=__SCT__{name}", path], check=True)
    return path


def objects_named(folder: Path) -> dict[str, Path]:
    """One object for each of the `NAMES`, by its name."""
    return {name: object_named(folder / f"hostile{number}.o", name) for number, name in enumerate(NAMES)}


_TWINS = """
.macro static_call name, target, sites
 .section .static_call.text, "ax"
 .balign 8
__SCT__\\name: jmp \\target
 .byte 0x0f, 0xb9, 0xcc
 .data
 .balign 8
__SCK__\\name: .quad \\target, 0
 .rept \\sites
  .text
  .balign 8
9: call __SCT__\\name
  .section .static_call_sites, "aw"
  .balign 4
  .long 9b - ., __SCK__\\name - .
 .endr
.endm
 .text
 .globl _start
_start: nop
first: ret
second: ret
third: ret
 static_call twin, first, 2
 static_call twim, second, 2
 static_call other, third, 3
"""


def twins(folder: Path) -> Path:
    """Make a program with two static calls that have the same name, as those of two sources may, and a third."""
    unit, program = folder / "twins.o", folder / "twins"
    subprocess.run(["as", "-o", unit, "-"], input=_TWINS.encode(), check=True)
    for kind in ("__SCK__", "__SCT__"):
        subprocess.run(["objcopy", "--redefine-sym", f"{kind}twim={kind}twin", unit], check=True)
    subprocess.run(["ld", "-o", program, unit], check=True)
    return program
