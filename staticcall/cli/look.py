"""How to look at a file: the options that report and patch share, and what becomes of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from staticcall.cli.quick import Option
from staticcall.errors import UsageError
from staticcall.model.aids import Aids, NameAids
from staticcall.model.sites import Policy, PolicyName
from staticcall.pipeline.look import LARGEST_LINE, NO_LINE, SMALLEST_LINE, Look, is_line

_AIDS = ("system_map", "debug_file", "debug_dir", "vmlinux", "modules")
LINES = tuple(str(1 << bits) for bits in range(SMALLEST_LINE.bit_length() - 1, LARGEST_LINE.bit_length()))

LOOK_OPTIONS = (
    Option(
        ("--policy",),
        "policy",
        "choice",
        "Which sites are patched directly.",
        default=PolicyName.LUTOMIRSKI.value,
        choices=tuple(name.value for name in PolicyName),
    ),
    Option(
        ("--line",),
        "line",
        "count",
        f"Bytes in a cache line, a power of two from {SMALLEST_LINE} to {LARGEST_LINE}.",
        default=64,
        choices=LINES,
    ),
    Option(("--key",), "key", "key", "Only keys whose name matches.", metavar="GLOB"),
    Option(("--table",), "table", "text", "Where the records are: addresses in hex, or symbols.", metavar="START:STOP"),
    Option(("--system-map",), "system_map", "path", "The System.map of a kernel, for the names."),
    Option(("--debug-file",), "debug_file", "path", "The separate debug file, or unstripped twin, for the names."),
    Option(("--debug-dir",), "debug_dir", "path", "Where debug files lie by build id, as in /usr/lib/debug."),
    Option(("--vmlinux",), "vmlinux", "path", "The kernel of a module, for its keys and the types of its functions."),
    Option(("--modules",), "modules", "path", "The folder with a module's other modules, for their keys."),
)


def look_of(values: Mapping[str, Any]) -> Look:
    """What the values of `LOOK_OPTIONS` ask for; raises `UsageError` for a line that cannot be."""
    line = values["line"]
    if not is_line(line):
        raise UsageError(f"--line {line} is {NO_LINE}")
    paths = {name: None if values[name] is None else Path(values[name]) for name in _AIDS}
    names = NameAids(paths["system_map"], paths["debug_file"], paths["debug_dir"])
    return Look(
        policy=Policy(PolicyName(values["policy"]), line),
        keys=values["key"],
        table=values["table"],
        aids=Aids(names, paths["vmlinux"], paths["modules"]),
    )
