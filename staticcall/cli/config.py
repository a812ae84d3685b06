"""The options of a patch from a TOML file.

policy = "lutomirski"      # as --policy, --line, --key, --bind, --force; a switch on the command line wins
line = 64
bind = true
key = "tp_func_*"
force = ["kaslr-slot"]
force-type = true          # as --force-type
pin = ["might_resched"]    # as --pin

[set]                      # as --set KEY=TARGET
pv_sched_clock = "native_sched_clock"
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from staticcall.cli.settings import parse
from staticcall.errors import UsageError
from staticcall.model.sites import Policy, PolicyName
from staticcall.pipeline.look import NO_LINE, Look, is_line
from staticcall.pipeline.patch import FORCE_TYPE, FORCEABLE, Wishes, read_whole

_TYPES: Mapping[str, type] = {
    "policy": str,
    "line": int,
    "bind": bool,
    "key": str,
    "force": list,
    "force-type": bool,
    "pin": list,
    "set": dict,
}


def read_config(path: Path, look: Look, wishes: Wishes, given: Collection[str]) -> tuple[Look, Wishes]:
    """Complete what the command line asked for by what the file says; `given` are the options it named."""
    content = read_whole(path)
    values = parse(str(path), content).values
    _check(path, values)
    name, line = look.policy
    policy = Policy(
        name if "policy" in given else PolicyName(values.get("policy", name)),
        line if "line" in given else values.get("line", line),
    )
    keys = look.keys if "key" in given else values.get("key")
    asked = {key for key, _ in wishes.sets}
    sets = (*((key, target) for key, target in values.get("set", {}).items() if key not in asked), *wishes.sets)
    forced = wishes.forced | frozenset(values.get("force", [])) | ({FORCE_TYPE} if values.get("force-type") else set())
    bind = wishes.bind or values.get("bind", False)
    pins = tuple(dict.fromkeys((*values.get("pin", []), *wishes.pins)))
    return look._replace(policy=policy, keys=keys), Wishes(sets, bind, keys, forced, pins)


def _check(path: Path, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if name not in _TYPES:
            raise UsageError(f"has the unknown option {name}", path=path, advice=f"known are {', '.join(_TYPES)}")
        if type(value) is not _TYPES[name]:
            raise UsageError(f"gives {name} a {type(value).__name__}, not a {_TYPES[name].__name__}", path=path)
    for key, target in values.get("set", {}).items():
        if not isinstance(target, str):
            raise UsageError(f"sets {key} to something that is no text", path=path)
    if not all(isinstance(key, str) for key in values.get("pin", [])):
        raise UsageError("pins something that is no text", path=path)
    for code in values.get("force", []):
        if not isinstance(code, str) or code not in FORCEABLE:
            raise UsageError(f"forces the unknown {code}", path=path, advice=f"known are {', '.join(FORCEABLE)}")
    if values.get("policy", PolicyName.KERNEL) not in list(PolicyName):
        raise UsageError(f"names the unknown policy {values['policy']}", path=path)
    line = values.get("line", 64)
    if not is_line(line):
        raise UsageError(f"gives a line of {line} bytes, {NO_LINE}", path=path)
