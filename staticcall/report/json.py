"""The public JSON: reports and the schemas of all forms.

Rendered in pieces, one line per site and key: a tree of objects for a million sites would not fit.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from importlib.resources import files

from staticcall import __version__
from staticcall.model.report import ImageReport
from staticcall.model.sites import Finding, Policy, Site, Verdict
from staticcall.model.values import ImageValues, Key, Summary
from staticcall.model.values import Site as SiteValue
from staticcall.report.names import Names, hexadecimal, shown
from staticcall.report.values import site_value, values_of

SCHEMA_VERSION = 1
SCHEMAS = ("report", "explain", "diff", "edits", "allow-list", "check-memory")

compact = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


def schema_text(name: str) -> str:
    """The JSON Schema of a public form, one of `SCHEMAS`, as text."""
    return files("staticcall.report").joinpath("schemas", f"{name}.schema.json").read_text("utf-8")


def document_head(policy: Policy | None = None) -> dict[str, object]:
    """What every document begins with; with a policy where sites were judged by one."""
    head: dict[str, object] = {
        "schema_version": SCHEMA_VERSION,
        "tool": {"name": "staticcall", "version": __version__},
    }
    return head if policy is None else head | {"policy": policy_value(policy)}


def policy_value(policy: Policy) -> dict[str, object]:
    """A policy with the bytes of its cache line."""
    return {"name": policy.name.value, "line": policy.line}


def render_document(policy: Policy, images: Iterable[str]) -> Iterator[str]:
    """Rendered images as one JSON document, in pieces."""
    yield f'{compact(document_head(policy))[:-1]},"images":['
    separator = "\n"
    for image in images:
        yield separator + image
        separator = ",\n"
    yield "\n]}\n"


def render_image(report: ImageReport) -> Iterator[str]:
    """One image's object, in pieces: one line per site and per key."""
    return render_values(values_of(report))


def render_values(image: ImageValues) -> Iterator[str]:
    """The same of an image that need not be open any more."""
    head: dict[str, object] = {"path": shown(image.path)}
    if image.sha256 is not None:
        head["sha256"] = image.sha256
    names = image.names
    head |= {
        "build_id": image.build_id,
        "elf_type": image.elf_type,
        "machine": "x86_64",
        "container": image.container,
        "names": {"source": names.kind, "path": None if names.path is None else shown(names.path)},
    }
    yield compact(head)[:-1]
    yield from array_of("sites", map(_site, image.sites))
    yield from array_of("keys", map(_key, image.keys))
    yield f',"summary":{compact(_summary(image.summary))}'
    yield from array_of("findings", map(finding_value, image.findings))
    yield "}"


def array_of(name: str, items: Iterable[dict[str, object]]) -> Iterator[str]:
    """A member that is an array, in pieces: one line per item. It follows another member."""
    yield f',"{name}":['
    separator = "\n"
    for item in items:
        yield separator + compact(item)
        separator = ",\n"
    yield "]"


def site_members(report: ImageReport, names: Names, site: Site, verdict: Verdict) -> dict[str, object]:
    """What is told of a site, by the names that it has in JSON."""
    return _site(site_value(report, names, site, verdict))


def _site(site: SiteValue) -> dict[str, object]:
    return {
        "record": site.record,
        "address": hexadecimal(site.address),
        "section": site.section,
        "offset": site.offset,
        "file_offset": site.file_offset,
        "function": site.function,
        "key": site.key,
        "trampoline": site.trampoline,
        "tail": site.tail,
        "form": site.form.value,
        "bytes": site.code.hex(),
        "length": len(site.code),
        "destination": site.destination,
        "crosses_line": site.crosses_line,
        "verdict": site.verdict.value,
        "reason": site.reason,
        "sources": [source.value for source in site.sources],
        **({"pinned": True} if site.pinned else {}),
        **({"placement": "predicted"} if site.predicted else {}),
    }


def _key(key: Key) -> dict[str, object]:
    return {
        "name": key.name,
        "address": hexadecimal(key.address),
        "defined": key.defined,
        **({} if key.defined_in is None else {"defined_in": key.defined_in}),
        "func": key.func,
        "trampoline": key.trampoline,
        "sites": key.sites,
    }


def _summary(summary: Summary) -> dict[str, object]:
    return {
        "sites": summary.sites,
        "direct": summary.direct,
        "trampoline": summary.trampoline,
        "undecided": summary.undecided,
        "crossing": summary.crossing,
        "forms": summary.forms,
        "reasons": summary.reasons,
        "keys": summary.keys,
        **({} if summary.pinned is None else {"pinned": summary.pinned}),
    }


def finding_value(finding: Finding) -> dict[str, object]:
    """A finding, with its address in hex."""
    return {
        "code": finding.code,
        "severity": finding.severity.value,
        "message": finding.message,
        "address": hexadecimal(finding.address),
    }
