"""Edits files and options files that are none, and those that say what cannot be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.refusals import INPUT, UNSAFE, UNVERIFIED, USAGE, Room, refusal
from tests.support.tool import digest, patch, staticcall

Json = dict[str, Any]
Change = Callable[[Json], object]


@pytest.fixture
def patched(room: Room) -> Room:
    """The room with a patched file in the place of the bad one, and its edits file."""
    made = patch(room.good, room.out, "--bind")
    made.output.rename(room.bad)
    made.edits_file.rename(room.edits)
    return room


def _revert(room: Room, content: bytes, code: int, names: Path) -> str:
    room.edits.write_bytes(content)
    refusal(room.folder, ("revert", room.bad, "--edits", room.edits, "--in-place"), {code}, names)
    return refusal(room.folder, ("revert", room.bad, "--edits", room.edits, "-o", room.out), {code}, names)


NO_EDITS = {
    "empty": b"",
    "blank": b" \n",
    "cut": b'{"schema_version": 1, "original_sha256": "',
    "trailing": b"{} {}",
    "no-utf-8": b"\xff\xfe{}",
    "utf-16": '{"schema_version": 1}'.encode("utf-16"),
    "null-bytes": b"\0" * 100,
    "an-image": b"\x7fELF\x02\x01\x01",
    "list": b"[]",
    "null": b"null",
    "number": b"1",
    "text": b'"edits"',
    "deep": b"[" * 100_000,
    "deep-object": b'{"a":' * 100_000,
    "deep-and-closed": b"[" * 100_000 + b"]" * 100_000,
    "many-digits": b'{"schema_version": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("case", NO_EDITS)
def test_what_is_no_edits_file_is_refused(case: str, patched: Room) -> None:
    assert "edits file" in _revert(patched, NO_EDITS[case], INPUT, patched.edits)


def _of_first(field: str, value: object) -> Change:
    return lambda document: document["edits"][0].update({field: value})


def _without(field: str) -> Change:
    return lambda document: document.pop(field)


def _first_without(field: str) -> Change:
    return lambda document: document["edits"][0].pop(field)


WRONG_VALUES: dict[str, dict[str, object]] = {
    "file_offset": {
        "negative": -1,
        "huge": 1 << 63,
        "absurd": 1 << 400,
        "fraction": 4096.5,
        "whole-fraction": 4096.0,
        "infinite": float("inf"),
        "nan": float("nan"),
        "text": "4096",
        "true": True,
        "null": None,
        "list": [4096],
    },
    "old": {"no-hex": "zz", "odd": "abc", "longer": "00" * 99, "null": None, "number": 5, "list": []},
    "new": {"no-hex": "0x", "shorter": "", "object": {}},
    "kind": {"unknown": "spoon", "null": None, "list": []},
    "address": {"number": 4096, "no-hex": "there", "empty": ""},
}
WRONG_EDITS: dict[str, Change] = {
    **{
        f"{field}-{name}": _of_first(field, value)
        for field, values in WRONG_VALUES.items()
        for name, value in values.items()
    },
    **{f"{field}-missing": _first_without(field) for field in (*WRONG_VALUES, "key")},
    **{
        f"{field}-missing": _without(field)
        for field in ("schema_version", "original_sha256", "patched_sha256", "edits")
    },
    "version-later": lambda document: document.update({"schema_version": 2}),
    "version-text": lambda document: document.update({"schema_version": "1"}),
    "version-true": lambda document: document.update({"schema_version": True}),
    "version-fraction": lambda document: document.update({"schema_version": 1.0}),
    "version-null": lambda document: document.update({"schema_version": None}),
    "edits-null": lambda document: document.update({"edits": None}),
    "edits-object": lambda document: document.update({"edits": {"a": 1}}),
    "edits-text": lambda document: document.update({"edits": "many"}),
    "edits-numbers": lambda document: document.update({"edits": [1, 2]}),
    "edits-lists": lambda document: document.update({"edits": [[]]}),
    "sha256-number": lambda document: document.update({"original_sha256": 5}),
    "sha256-list": lambda document: document.update({"patched_sha256": []}),
}


@pytest.mark.parametrize("case", WRONG_EDITS)
def test_an_edits_file_with_a_wrong_value_is_refused(case: str, patched: Room) -> None:
    document = json.loads(patched.edits.read_text())
    WRONG_EDITS[case](document)
    _revert(patched, json.dumps(document).encode(), INPUT, patched.edits)


def _reach(offset: int) -> Change:
    """Let the first edit begin so many bytes from the end of the file."""
    return lambda document: document["edits"][0].update({"file_offset": document["size"] + offset})


# Well-formed, for the very file, and false all the same.
FALSE_EDITS: dict[str, tuple[int, Change]] = {
    "beyond-the-end": (INPUT, _reach(100)),
    "over-the-end": (INPUT, _reach(-2)),
    "at-the-last-offset": (INPUT, _of_first("file_offset", (1 << 63) - 1)),
    "elsewhere": (INPUT, _of_first("file_offset", 0)),
    "other-bytes-expected": (INPUT, _of_first("new", "0000000000")),
    "twice": (INPUT, lambda document: document["edits"].append(document["edits"][0])),
    "other-bytes-restored": (UNVERIFIED, _of_first("old", "0000000000")),
    "too-few": (UNVERIFIED, lambda document: document["edits"].pop()),
    "none": (UNVERIFIED, lambda document: document["edits"].clear()),
    "other-original": (UNVERIFIED, lambda document: document.update({"original_sha256": "0" * 64})),
    "no-original": (UNVERIFIED, lambda document: document.update({"original_sha256": ""})),
    "other-patched": (UNSAFE, lambda document: document.update({"patched_sha256": "0" * 64})),
}


# What these come to is no edits file any more: its edits stand in file order.
OUT_OF_ORDER = ("beyond-the-end", "over-the-end", "at-the-last-offset", "twice")


@pytest.mark.parametrize("case", FALSE_EDITS)
def test_edits_that_do_not_lead_back_are_refused(case: str, patched: Room) -> None:
    code, change = FALSE_EDITS[case]
    document = json.loads(patched.edits.read_text())
    first = document["edits"][0]
    assert len(first["old"]) == len("0000000000")
    document["size"] = patched.bad.stat().st_size
    change(document)
    named = patched.edits if case in OUT_OF_ORDER else patched.bad
    _revert(patched, json.dumps(document).encode(), code, named)


def test_edits_of_another_file_are_refused(patched: Room) -> None:
    patched.bad.write_bytes(patched.bad.read_bytes() + b"\0")
    _revert(patched, patched.edits.read_bytes(), UNSAFE, patched.bad)


BAD_OPTIONS: dict[str, tuple[int, bytes]] = {
    "no-utf-8": (INPUT, b"\xff"),
    "utf-16": (INPUT, "bind = true\n".encode("utf-16")),
    "image": (INPUT, b"\x7fELF\0\0\0"),
    "cut": (INPUT, b"bind = "),
    "open-table": (INPUT, b"[set"),
    "twice": (INPUT, b"bind = true\nbind = true\n"),
    "many-digits": (INPUT, b"line = " + b"9" * 5000),
    "deep": (INPUT, b"force = " + b"[" * 100_000),
    "deep-and-closed": (INPUT, b"force = " + b"[" * 100_000 + b"]" * 100_000),
    "no-such-day": (INPUT, b"key = 2021-02-31"),
    "control-characters": (INPUT, b'key = "\x1b[31m"'),
    "unknown": (USAGE, b"bond = true\n"),
    "unknown-table": (USAGE, b"[sets]\na = 'b'\n"),
    "bind-text": (USAGE, b"bind = 'yes'\n"),
    "bind-number": (USAGE, b"bind = 1\n"),
    "policy-unknown": (USAGE, b"policy = 'knuth'\n"),
    "policy-number": (USAGE, b"policy = 5\n"),
    "policy-list": (USAGE, b"policy = ['kernel']\n"),
    "line-none": (USAGE, b"line = 0\n"),
    "line-negative": (USAGE, b"line = -64\n"),
    "line-odd": (USAGE, b"line = 63\n"),
    "line-small": (USAGE, b"line = 4\n"),
    "line-huge": (USAGE, b"line = 1180591620717411303424\n"),
    "line-fraction": (USAGE, b"line = 64.0\n"),
    "line-infinite": (USAGE, b"line = inf\n"),
    "line-true": (USAGE, b"line = true\n"),
    "key-number": (USAGE, b"key = 5\n"),
    "force-text": (USAGE, b"force = 'kaslr-slot'\n"),
    "force-unknown": (USAGE, b"force = ['everything']\n"),
    "force-numbers": (USAGE, b"force = [1]\n"),
    "force-lists": (USAGE, b"force = [['kaslr-slot']]\n"),
    "force-tables": (USAGE, b"force = [{}]\n"),
    "set-text": (USAGE, b"set = 'alpha=beta'\n"),
    "set-number": (USAGE, b"[set]\nalpha = 5\n"),
    "set-table": (USAGE, b"[set.alpha]\nbeta = 'gamma'\n"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options_in_a_file_are_refused(case: str, room: Room) -> None:
    code, content = BAD_OPTIONS[case]
    room.bad.write_bytes(content)
    for place in (("-o", room.out), ("--in-place",), ("--dry-run",)):
        refusal(room.folder, ("patch", room.good, "--bind", "--config", room.bad, *place), {code}, room.bad)


def test_a_file_without_options_asks_for_nothing(room: Room) -> None:
    room.bad.touch()
    refusal(room.folder, ("patch", room.good, "--config", room.bad, "-o", room.out), {USAGE}, Path("nothing to patch"))


def test_a_good_pair_is_taken(patched: Room) -> None:
    outcome = staticcall("revert", patched.bad, "--edits", patched.edits, "-o", patched.out)
    assert (outcome.code, outcome.err) == (0, "")
    assert digest(patched.out) == digest(patched.good)
