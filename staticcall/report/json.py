"""The public JSON: reports, edits files and their schemas.

Rendered in pieces, one line per site and key: a tree of objects for a million sites would not fit.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from importlib.resources import files
from itertools import pairwise
from typing import Any

from staticcall import __version__
from staticcall.abi import elf64, x86
from staticcall.errors import MalformedError
from staticcall.model.change import Edit, EditKind, Plan
from staticcall.model.report import ImageReport
from staticcall.model.sites import Finding, Key, Policy, Site, Source, TargetKind, Verdict
from staticcall.report.names import Names, hexadecimal, shown

SCHEMA_VERSION = 1
SCHEMAS = ("report", "edits", "allow-list", "check-memory")

# Offsets in files are signed 64-bit numbers.
_FILE_END = 1 << 63

compact = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


def schema_text(name: str) -> str:
    """The JSON Schema of a public form, one of `SCHEMAS`, as text."""
    return files("staticcall.report").joinpath("schemas", f"{name}.schema.json").read_text("utf-8")


def render_document(policy: Policy, images: Iterable[str]) -> Iterator[str]:
    """Rendered images as one JSON document, in pieces."""
    head = {
        "schema_version": SCHEMA_VERSION,
        "tool": {"name": "staticcall", "version": __version__},
        "policy": {"name": policy.name.value, "line": policy.line},
    }
    yield f'{compact(head)[:-1]},"images":['
    separator = "\n"
    for image in images:
        yield separator + image
        separator = ",\n"
    yield "\n]}\n"


def render_image(report: ImageReport) -> Iterator[str]:
    """One image's object, in pieces: one line per site and per key."""
    image = report.image
    head: dict[str, object] = {"path": shown(image.path)}
    if report.sha256 is not None:
        head["sha256"] = report.sha256
    head |= {
        "build_id": image.build_id,
        "elf_type": elf64.TYPE_NAMES[image.elf_type],
        "machine": "x86_64",
    }
    yield compact(head)[:-1]
    names = Names(image, report.sites, report.keys)
    pairs = zip(report.sites, report.verdicts, strict=True)
    yield from array_of("sites", (_site(report, names, *pair) for pair in pairs))
    yield from array_of("keys", (_key(report, names, key) for key in report.keys))
    yield f',"summary":{compact(_summary(report))}'
    yield from array_of("findings", (_finding(report, finding) for finding in report.findings))
    yield "}"


def array_of(name: str, items: Iterable[dict[str, object]]) -> Iterator[str]:
    """A member that is an array, in pieces: one line per item. It follows another member."""
    yield f',"{name}":['
    separator = "\n"
    for item in items:
        yield separator + compact(item)
        separator = ",\n"
    yield "]"


def _site(report: ImageReport, names: Names, site: Site, verdict: Verdict) -> dict[str, object]:
    key = report.located.key_of(site)
    length = site.instruction.length
    return {
        "record": site.record,
        "address": None if site.alignment else hexadecimal(site.address),
        "section": site.section,
        "offset": site.offset,
        "file_offset": site.file_offset,
        "function": names.function(site.address),
        "key": key.name if key else None,
        "trampoline": key.trampoline.label if key and key.trampoline else None,
        "tail": site.tail,
        "form": site.instruction.form.value,
        "bytes": report.image.in_file(site.file_offset, site.code).hex(),
        "length": length,
        "destination": names.destination(site),
        "crosses_line": x86.crosses_anywhere(site.address, length, report.policy.line, site.alignment),
        "verdict": verdict.answer.value,
        "reason": verdict.reason,
        "sources": [source.value for source in site.sources],
        **({"pinned": True} if Source.EDITS in site.sources else {}),
    }


def _key(report: ImageReport, names: Names, key: Key) -> dict[str, object]:
    direct, others = report.summary.by_key.get(key.address, (0, 0))
    return {
        "name": key.name,
        "address": None if report.image.placement else hexadecimal(key.address),
        "defined": not key.slot.elsewhere,
        "func": None if report.located.kind_of(key) is TargetKind.NULL else names.function_of(key),
        "trampoline": key.trampoline.label if key.trampoline else None,
        "sites": direct + others,
    }


def _summary(report: ImageReport) -> dict[str, object]:
    summary = report.summary
    return {
        "sites": summary.sites,
        "direct": summary.direct,
        "trampoline": summary.trampoline,
        "undecided": summary.undecided,
        "crossing": summary.crossing,
        "forms": summary.forms,
        "reasons": {reason: count for (_, reason), count in summary.reasons.items()},
        "keys": summary.keys,
        **({} if summary.pinned is None else {"pinned": summary.pinned}),
    }


def _finding(report: ImageReport, finding: Finding) -> dict[str, object]:
    return {
        "code": finding.code,
        "severity": finding.severity.value,
        "message": finding.message,
        "address": None if report.image.placement else hexadecimal(finding.address),
    }


def render_edits(plan: Plan, original_sha256: str, patched_sha256: str) -> Iterator[str]:
    """The edits file, with which `revert` restores the original."""
    head = {
        "schema_version": SCHEMA_VERSION,
        "original_sha256": original_sha256,
        "patched_sha256": patched_sha256,
    }
    yield compact(head)[:-1]
    yield from array_of("edits", (_edit(edit) for edit in plan.edits))
    yield "}\n"


def _edit(edit: Edit) -> dict[str, object]:
    return {
        "file_offset": edit.file_offset,
        "old": edit.old.hex(),
        "new": edit.new.hex(),
        "kind": edit.kind.value,
        "key": edit.key,
        "address": hexadecimal(edit.address),
    }


def parse_edits(text: bytes) -> tuple[str, str, tuple[Edit, ...]]:
    """Read an edits file: the original's SHA-256, the patched file's, and the edits in file order.

    Raises `MalformedError` for anything that `render_edits` does not write.
    """
    try:
        document: Any = json.loads(text.decode("utf-8"))
        version = document["schema_version"]
        if type(version) is int and version != SCHEMA_VERSION:
            raise MalformedError(f"is an edits file of version {version}", advice="use the version that wrote it")
        edits = tuple(_parse_edit(edit) for edit in document["edits"])
        original, patched = document["original_sha256"], document["patched_sha256"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise MalformedError("is not an edits file", advice="give the file that --edits wrote") from error
    if not (type(version) is int and isinstance(original, str) and isinstance(patched, str)):
        raise MalformedError("is not an edits file", advice="give the file that --edits wrote")
    if not all(0 <= edit.file_offset < _FILE_END for edit in edits) or not _lengths_fit(edits):
        raise MalformedError("has edits that do not fit", advice="give the file that --edits wrote")
    return original, patched, edits


def _lengths_fit(edits: tuple[Edit, ...]) -> bool:
    """Whether nothing moves: only the last edit may replace the rest of the file by more or by less."""
    return all(len(edit.old) == len(edit.new) for edit in edits[:-1]) and all(
        before.file_offset + len(before.old) <= after.file_offset for before, after in pairwise(edits)
    )


def _parse_edit(edit: Any) -> Edit:
    offset = edit["file_offset"]
    if type(offset) is not int:  # a float would be cut, and true would be 1
        raise TypeError("an offset that is no integer")
    old, new = bytes.fromhex(edit["old"]), bytes.fromhex(edit["new"])
    address = None if edit["address"] is None else int(edit["address"], 16)
    return Edit(offset, old, new, EditKind(edit["kind"]), str(edit["key"]), address)
