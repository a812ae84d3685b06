"""How to look at a file: the options that report and patch share, and what becomes of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from staticcall.cli.quick import Option
from staticcall.errors import UsageError
from staticcall.model.sites import Policy, PolicyName
from staticcall.pipeline.look import Look

_SMALLEST_LINE, _LARGEST_LINE = 8, 4096
NO_LINE = f"no power of two from {_SMALLEST_LINE} to {_LARGEST_LINE}"

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
        f"Bytes in a cache line, a power of two from {_SMALLEST_LINE} to {_LARGEST_LINE}.",
        default=64,
    ),
    Option(("--key",), "key", "text", "Only keys whose name matches.", metavar="GLOB"),
    Option(("--table",), "table", "text", "Where the records are: addresses in hex, or symbols.", metavar="START:STOP"),
)


def is_line(value: int) -> bool:
    """Whether a cache line can have so many bytes."""
    return not value & (value - 1) and _SMALLEST_LINE <= value <= _LARGEST_LINE


def look_of(values: Mapping[str, Any]) -> Look:
    """What the values of `LOOK_OPTIONS` ask for; raises `UsageError` for a line that cannot be."""
    line = values["line"]
    if not is_line(line):
        raise UsageError(f"--line {line} is {NO_LINE}")
    return Look(policy=Policy(PolicyName(values["policy"]), line), keys=values["key"], table=values["table"])
