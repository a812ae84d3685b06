"""The public edits file: what `patch --edits` writes and `revert` takes back."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any, NoReturn

from staticcall.errors import MalformedError
from staticcall.model.change import Edit, EditKind, OuterChange, Undo
from staticcall.report.json import SCHEMA_VERSION, array_of, compact
from staticcall.report.names import hexadecimal

# Offsets in files are signed 64-bit numbers.
_FILE_END = 1 << 63


def render_undo(undo: Undo) -> Iterator[str]:
    """The edits file, in pieces."""
    head = {
        "schema_version": SCHEMA_VERSION,
        "original_sha256": undo.original_sha256,
        "patched_sha256": undo.patched_sha256,
    }
    yield compact(head)[:-1]
    if undo.outer is not None:
        yield f',"container":{compact(_outer(undo.outer))}'
    yield from array_of("edits", (_edit(edit) for edit in undo.edits))
    yield "}\n"


def _outer(outer: OuterChange) -> dict[str, object]:
    return {
        "layers": outer.layers,
        "file_offset": outer.file_offset,
        "old": b64encode(outer.old).decode("ascii"),
        "new_size": outer.new_size,
    }


def _edit(edit: Edit) -> dict[str, object]:
    return {
        "file_offset": edit.file_offset,
        "old": edit.old.hex(),
        "new": edit.new.hex(),
        "kind": edit.kind.value,
        "key": edit.key,
        "address": hexadecimal(edit.address),
    }


def parse_undo(text: bytes) -> Undo:
    """Read an edits file.

    Raises `MalformedError` for anything that `render_undo` does not write.
    """
    try:
        document: Any = json.loads(text.decode("utf-8"))
        version = document["schema_version"]
        if type(version) is int and version != SCHEMA_VERSION:
            raise MalformedError(f"is an edits file of version {version}", advice="use the version that wrote it")
        edits = tuple(_parse_edit(edit) for edit in document["edits"])
        original, patched = document["original_sha256"], document["patched_sha256"]
        container = document.get("container")
        outer = None if container is None else _parse_outer(container)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise MalformedError("is not an edits file", advice="give the file that --edits wrote") from error
    if not (type(version) is int and isinstance(original, str) and isinstance(patched, str)):
        raise MalformedError("is not an edits file", advice="give the file that --edits wrote")
    if not all(0 <= edit.file_offset < _FILE_END for edit in edits) or not _lengths_fit(edits):
        _refuse()
    if outer is not None and not (0 <= outer.file_offset < _FILE_END and 0 <= outer.new_size < _FILE_END):
        _refuse()
    return Undo(original, patched, edits, outer)


def _refuse() -> NoReturn:
    raise MalformedError("has edits that do not fit", advice="give the file that --edits wrote")


def _lengths_fit(edits: Iterable[Edit]) -> bool:
    """Whether nothing moves: only the last edit may replace the rest of the file by more or by less."""
    edits = tuple(edits)
    return all(len(edit.old) == len(edit.new) for edit in edits[:-1]) and all(
        before.file_offset + len(before.old) <= after.file_offset for before, after in pairwise(edits)
    )


def _parse_edit(edit: Any) -> Edit:
    offset = edit["file_offset"]
    _require_integer(offset)
    old, new = bytes.fromhex(edit["old"]), bytes.fromhex(edit["new"])
    address = None if edit["address"] is None else int(edit["address"], 16)
    return Edit(offset, old, new, EditKind(edit["kind"]), str(edit["key"]), address)


def _parse_outer(container: Any) -> OuterChange:
    layers, offset, size = container["layers"], container["file_offset"], container["new_size"]
    _require_integer(offset)
    _require_integer(size)
    if not isinstance(layers, list) or not all(isinstance(layer, str) for layer in layers):
        raise TypeError("layers that are no list of names")
    return OuterChange(tuple(layers), offset, b64decode(container["old"], validate=True), size)


def _require_integer(value: Any) -> None:
    if type(value) is not int:  # a float would be cut, and true would be 1
        raise TypeError("an offset or a size that is no integer")
