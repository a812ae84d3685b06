"""What the fixture `calls` prints, given where its keys lead: a model of a few lines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from tests.support.toolchain import expected_output

TARGETS: Final[Mapping[str, Callable[[int], int]]] = MappingProxyType(
    {
        "alpha_plain": lambda x: x + 1,
        "alpha_fast": lambda x: x + 1001,
        "beta_plain": lambda x: x * 2,
        "beta_fast": lambda x: x * 2000,
        "zero_plus": lambda x: x + 50,
        "RET0": lambda _: 0,
    }
)
# A target with an effect and no result, for `hook` alone.
COUNT: Final = "hook_count"
KEYS: Final[Mapping[str, str]] = MappingProxyType(
    {"alpha": "alpha_plain", "beta": "beta_plain", "hook": "NULL", "zero": "RET0"}
)


def prints(**changed: str) -> str:
    """The program's output with some keys changed; a target is a function's name, NULL or RET0."""
    targets = {**KEYS, **changed}
    return "".join(f"{_line(line, targets)}\n" for line in expected_output("calls").splitlines())


def _line(line: str, targets: Mapping[str, str]) -> str:
    name, call, _ = line.partition("(7)")
    if call:
        return f"{name}(7) = {_result(name, 7, targets)}, (-7) = {_result(name, -7, targets)}"
    if name.startswith("hook total"):  # the four sites are run with 1, 10, 100 and 1000
        return f"hook total {1111 if targets['hook'] == COUNT else 0}"
    return line


def _result(name: str, x: int, targets: Mapping[str, str]) -> int:
    key = name.partition("_")[0]
    if key == "hook" or ("_jcc" in name and x >= 0):
        return x
    return TARGETS[targets[key]](x)
