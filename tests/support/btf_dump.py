"""The functions in BTF with their types in C, as bpftool lists the records and this file puts them together.

    types = functions(vmlinux)                  {"native_sched_clock": {"u64 (void)"}, ...}
    types = functions(module, base=vmlinux)     those of the module alone

Types within parentheses, functions and arrays, are left out: where one occurs, the function has no entry.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.toolchain import TIMEOUT_SECONDS

_RECORD = re.compile(r"^\[(\d+)\] ([A-Z_0-9]+) '([^']*)'(.*)$")
_PARAMETER = re.compile(r"^\t'([^']*)' type_id=(\d+)$")
_REFERENCE = re.compile(r"(?:ret_)?type_id=(\d+)")
_WORDS = {"CONST": "const", "VOLATILE": "volatile", "RESTRICT": "restrict"}
_TAGS = {"STRUCT": "struct", "UNION": "union", "ENUM": "enum", "ENUM64": "enum"}
_USUAL = {
    "long int": "long",
    "long unsigned int": "unsigned long",
    "long long int": "long long",
    "long long unsigned int": "unsigned long long",
    "short int": "short",
    "short unsigned int": "unsigned short",
}


class _Record(NamedTuple):
    kind: str
    name: str
    rest: str
    parameters: list[tuple[str, int]]


class _ManyError(Exception):
    """A type that takes more than words and stars."""


def bpftool() -> str:
    """The program, which Debian puts where only root looks; without it a test is skipped, or fails in CI."""
    found = shutil.which("bpftool", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("not installed: bpftool")
    return found


def functions(path: Path, base: Path | None = None) -> dict[str, set[str]]:
    """The types of the functions in a file's BTF, by name."""
    program = bpftool()
    command = [program, *(("-B", str(base)) if base else ()), "btf", "dump", "file", str(path), "format", "raw"]
    text = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=True).stdout
    records, own = _records(text), text
    if base:
        records = _records(_raw(program, base)) | records
    found: dict[str, set[str]] = defaultdict(set)
    for number in _records(own):
        record = records[number]
        if record.kind == "FUNC":
            try:
                found[record.name].add(_function(records, _reference(record)))
            except _ManyError:
                found[record.name].add("")
    return {name: types for name, types in found.items() if "" not in types}


def _raw(program: str, path: Path) -> str:
    command = [program, "btf", "dump", "file", str(path), "format", "raw"]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=True).stdout


def _records(text: str) -> dict[int, _Record]:
    records: dict[int, _Record] = {}
    last: _Record | None = None
    for line in text.splitlines():
        if match := _RECORD.match(line):
            name = "" if match[3] == "(anon)" else match[3]
            last = records[int(match[1])] = _Record(match[2], name, match[4], [])
        elif (match := _PARAMETER.match(line)) and last is not None:
            last.parameters.append((match[1], int(match[2])))
    return records


def _reference(record: _Record) -> int:
    match = _REFERENCE.search(record.rest)
    assert match, record
    return int(match[1])


def _function(records: dict[int, _Record], number: int) -> str:
    record = records[number]
    assert record.kind == "FUNC_PROTO"
    types = ["..." if not type_ else _type(records, type_) for _, type_ in record.parameters]
    result = _type(records, _reference(record))
    return f"{result}{'' if result.endswith('*') else ' '}({', '.join(types) or 'void'})"


def _type(records: dict[int, _Record], number: int) -> str:
    if not number:
        return "void"
    record = records[number]
    if record.kind in {"INT", "FLOAT", "TYPEDEF"}:
        return _USUAL.get(record.name, record.name)
    if record.kind in _TAGS and record.name:
        return f"{_TAGS[record.kind]} {record.name}"
    if record.kind == "FWD":
        return f"{'union' if 'fwd_kind=union' in record.rest else 'struct'} {record.name}"
    if record.kind == "PTR":
        to = _type(records, _reference(record))
        return to + ("*" if to.endswith("*") else " *")
    if record.kind == "TYPE_TAG":
        return _type(records, _reference(record))
    if record.kind in _WORDS:
        of = _type(records, _reference(record))
        return f"{of}{_WORDS[record.kind]}" if of.endswith("*") else f"{_WORDS[record.kind]} {of}"
    raise _ManyError
