"""The public JSON: reports and the schemas of all forms.

Rendered in pieces, one line per site and key: a tree of objects for a million sites would not fit.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from importlib.resources import files

from staticcall import __version__
from staticcall.abi import elf64, x86
from staticcall.model.report import ImageReport
from staticcall.model.sites import Finding, Key, Policy, Site, Source, TargetKind, Verdict
from staticcall.report.names import Names, hexadecimal, shown

SCHEMA_VERSION = 1
SCHEMAS = ("report", "diff", "edits", "allow-list", "check-memory")

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
    source = image.name_source
    head: dict[str, object] = {"path": shown(image.path)}
    if report.sha256 is not None:
        head["sha256"] = report.sha256
    head |= {
        "build_id": image.build_id,
        "elf_type": elf64.TYPE_NAMES[image.elf_type],
        "machine": "x86_64",
        "container": [layer.label for layer in image.layers],
        "names": {"source": source.kind, "path": None if source.path is None else shown(source.path)},
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
        **({"placement": "predicted"} if report.image.predicted(site.address) else {}),
    }


def _key(report: ImageReport, names: Names, key: Key) -> dict[str, object]:
    direct, others = report.summary.by_key.get(key.address, (0, 0))
    return {
        "name": key.name,
        "address": None if report.image.placement else hexadecimal(key.address),
        "defined": not key.slot.elsewhere,
        **({"defined_in": key.slot.definition.owner} if key.slot.definition else {}),
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
