"""The report as SARIF 2.1.0 (OASIS), for code scanning services.

One run holds all images: a result for each finding, and a note for each site that does not go direct; sites that do
are in the counts alone. Findings come first, the worst of them before the others. Services take 25,000 results of a
run at most, so what is beyond that is left out, which a notification says. A result is where the source is, if the
file's DWARF tells, and else in the binary file; where it is in the source, `analysisTarget` names the binary. Its
fingerprint is made of names, and so outlives a new build.

An image is rendered as lines for `render_document` to sort: a letter that says what it is, and an object of JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Final
from urllib.parse import quote

from staticcall import __version__
from staticcall.abi import elf64
from staticcall.errors import printable
from staticcall.model.findings import FINDINGS
from staticcall.model.lines import SourceLine
from staticcall.model.reasons import DIRECT_REASONS, REASONS, REMEDIES
from staticcall.model.report import ImageReport
from staticcall.model.sites import Answer, Finding, Policy, Severity, Site, Verdict
from staticcall.model.tree import NO_STATIC_CALLS
from staticcall.report.json import compact, policy_value
from staticcall.report.names import Names, hexadecimal

SCHEMA_URI: Final = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
MOST_RESULTS: Final = 25_000
# What kinds of lines there are.
_ARTIFACT, _ERROR, _NOTHING, _SITE = "A", "E", "N", "S"
_FINDINGS: Final = {Severity.ERROR: "1", Severity.WARNING: "2", Severity.NOTE: "3"}
# In this order; where there are too many, the last are left out.
_RESULTS: Final = (_NOTHING, *_FINDINGS.values(), _SITE)
# Beyond this, a program that reads numbers as doubles reads others.
_EXACT: Final = 1 << 53
_BASES: Final = {
    "SRCROOT": {"description": {"text": "The folder that the sources were compiled in."}},
    "PWD": {"description": {"text": "The folder that staticcall was run in."}},
}
_COUNTS: Final = ("sites", "direct", "trampoline", "undecided", "crossing", "keys")

Json = dict[str, object]


def render_document(policy: Policy, images: Iterable[str]) -> Iterator[str]:
    """Rendered images as one log of one run, in pieces: a line for each rule, result and artifact."""
    head = {"name": "staticcall", "version": __version__, "semanticVersion": __version__}
    yield f'{{"$schema":"{SCHEMA_URI}","version":"2.1.0","runs":[{{"tool":{{"driver":{compact(head)[:-1]},"rules":['
    yield "\n" + ",\n".join(map(compact, _rules())) + ']}},"results":['
    lines: dict[str, list[str]] = {kind: [] for kind in (_ARTIFACT, _ERROR, *_RESULTS)}
    left_out = 0
    for image in images:
        for line in image.split("\n")[:-1]:
            kind, text = line[0], line[1:]
            if kind in _RESULTS and len(lines[kind]) >= MOST_RESULTS:
                left_out += 1
            else:
                lines[kind].append(text)
    artifacts, errors = lines[_ARTIFACT], lines[_ERROR]
    if len(artifacts) > 1:
        lines[_NOTHING] = []  # among others it is no news that a file has none
    results = [text for kind in _RESULTS for text in lines[kind]]
    left_out += max(len(results) - MOST_RESULTS, 0)
    yield from (f"{',' if index else ''}\n{text}" for index, text in enumerate(results[:MOST_RESULTS]))
    yield '],"artifacts":[\n' + ",\n".join(artifacts)
    yield f'],"invocations":[{compact(_invocation(errors, left_out))}],"columnKind":"unicodeCodePoints"'
    yield f',"originalUriBaseIds":{compact(_BASES)},"properties":{compact(_run_properties(policy, artifacts))}}}]}}\n'


def _rules() -> Iterator[Json]:
    """Every reason and every finding, always in the same order."""
    for reason, sentence in REASONS.items():
        text = f"{sentence[0].upper()}{sentence[1:]}."
        what = "goes direct" if reason in DIRECT_REASONS else "does not go direct"
        full = f"The site of a static call {what}: {sentence}."
        level = "none" if reason in DIRECT_REASONS else "note"
        yield _rule(reason, text, full, REMEDIES.get(reason, "Nothing: the call is as fast as it can be."), level)
    for code, (severities, meaning, advice) in FINDINGS.items():
        yield _rule(code, meaning, meaning, advice, severities[0].value)


def _rule(code: str, short: str, full: str, advice: str, level: str) -> Json:
    of, prefix = ("reason", "Site") if code in REASONS else ("finding", "")
    return {
        "id": code,
        "name": prefix + "".join(part.capitalize() for part in code.split("-")),
        "shortDescription": {"text": short},
        "fullDescription": {"text": full},
        "help": {"text": advice, "markdown": f"{full}\n\n**What to do:** {advice}"},
        "defaultConfiguration": {"level": level},
        "properties": {"tags": ["static-call", of], "precision": "very-high"},
    }


_RULE_INDEX: Final[Mapping[str, int]] = {code: index for index, code in enumerate((*REASONS, *FINDINGS))}


def _invocation(errors: Iterable[str], left_out: int) -> Json:
    notes = [json.loads(error) for error in errors]
    successful = not notes
    if left_out:
        message = f"{left_out:,} results are left out, since services take {MOST_RESULTS:,} at most"
        notes.append(_notification("warning", f"{message}; select keys with --key, or use another form"))
    return {"executionSuccessful": successful, "toolExecutionNotifications": notes}


def _notification(level: str, message: str) -> Json:
    return {"level": level, "message": _message(message)}


def _message(text: str) -> Json:
    """A message; of names that would be links in it (SARIF 2.1.0, 3.11.6) the two parts are set apart."""
    return {"text": text.replace("](", "] (")}


def render_failure(message: str) -> str:
    """A file that could not be read, as a line that `render_document` sorts."""
    return _line(_ERROR, _notification("error", printable(message)))


def _run_properties(policy: Policy, artifacts: Iterable[str]) -> Json:
    total: Counter[str] = Counter(dict.fromkeys(_COUNTS, 0))
    for artifact in artifacts:
        total.update({name: json.loads(artifact)["properties"][name] for name in _COUNTS})
    return {"policy": policy_value(policy), "summary": dict(total)}


def render_image(report: ImageReport) -> Iterator[str]:
    """One image, in lines that `render_document` sorts."""
    image = _Image(report)
    yield _line(_ARTIFACT, image.artifact())
    for finding in report.findings:
        kind = _NOTHING if finding.code == NO_STATIC_CALLS else _FINDINGS[finding.severity]
        yield _line(kind, image.finding(finding))
    for site, verdict in zip(report.sites, report.verdicts, strict=True):
        owner = image.owner(site.address)
        ordinal = image.ordinal(owner[0], image.key_name(site))
        if verdict.answer is not Answer.DIRECT:
            yield _line(_SITE, image.site(site, verdict, owner, ordinal))


def _line(kind: str, value: Json) -> str:
    return f"{kind}{compact(value)}\n"


class _Image:
    """One image on its way to be told, with the names and numbers that many results need."""

    def __init__(self, report: ImageReport) -> None:
        self._report = report
        self._names = Names(report.image, (), ())
        self._seen: Counter[tuple[str, str]] = Counter()
        self._file = _uri_of(_without_ups(str(report.image.path)), "PWD")
        self._sites = {site.address: site for site in report.sites}
        self._keys = {key.address: key.name for key in report.keys}
        self._trampolines = {one.address: one.label for one in report.located.trampolines.values()}

    def artifact(self) -> Json:
        """The binary file, with the counts of its sites."""
        image, summary = self._report.image, self._report.summary
        hashes = {} if self._report.sha256 is None else {"hashes": {"sha-256": self._report.sha256}}
        return {
            "location": self._file,
            **({} if image.layers else {"length": image.source.size}),
            "roles": ["analysisTarget"],
            "mimeType": "application/octet-stream" if image.layers else "application/x-elf",
            **hashes,
            "properties": {
                **{name: getattr(summary, name) for name in _COUNTS},
                "reasons": {reason: count for (_, reason), count in summary.reasons.items()},
                "elf_type": elf64.TYPE_NAMES[image.elf_type],
                "build_id": image.build_id,
                "container": [layer.label for layer in image.layers],
            },
        }

    def owner(self, address: int) -> tuple[str, str]:
        """The function that an address lies in, or its section, and which of the two it is."""
        image = self._report.image
        symbol = image.symbols.containing(address)
        if symbol:
            return symbol.name, "function"
        section = image.section_at(address)
        return section.name if section else "", "section"

    def key_name(self, site: Site) -> str:
        """The name of a site's key, as far as it is known."""
        key = self._report.located.key_of(site)
        return key.name if key else ""

    def ordinal(self, owner: str, name: str) -> int:
        """Which one of several of the same names this is, from 1; counted in the order of the questions."""
        self._seen[owner, name] += 1
        return self._seen[owner, name]

    def site(self, site: Site, verdict: Verdict, within: tuple[str, str], ordinal: int) -> Json:
        """A site that does not go direct."""
        key, (owner, kind) = self.key_name(site), within
        place = self._names.function(site.address) or site.where
        what = f"The {site.instruction.form} of static call {key or 'without a key'} at {place}"
        outcome = "may have to go" if verdict.answer is Answer.UNDECIDED else "goes"
        properties = {"verdict": verdict.answer.value, "key": key or None, "form": site.instruction.form.value}
        return {
            **_rule_of(verdict.reason, Severity.NOTE.value),
            "message": _message(f"{what} {outcome} by its trampoline: {REASONS[verdict.reason]}."),
            **self._places(site.address, site, owner, kind),
            **self._fingerprints(owner, key, verdict.reason, ordinal),
            "properties": properties | self._place_of(site.address, site),
        }

    def finding(self, finding: Finding) -> Json:
        """A finding: about a site, a key or a trampoline, or about the whole file."""
        address, owner, kind = finding.address, "", ""
        site = None if address is None else self._sites.get(address)
        if address in self._keys:
            owner, kind = self._keys[address], "variable"
        elif address in self._trampolines:
            owner, kind = self._trampolines[address], "function"
        elif address is not None:
            owner, kind = self.owner(address)
        key = self.key_name(site) if site else ""
        message = finding.message
        return {
            **_rule_of(finding.code, finding.severity.value),
            "message": _message(f"{message[:1].upper()}{message[1:]}."),
            **self._places(address, site, owner, kind),
            **self._fingerprints(owner, key, finding.code, self.ordinal(owner, f"{key} {finding.code}")),
            "properties": self._place_of(address, site),
        }

    def _place_of(self, address: int | None, site: Site | None) -> Json:
        if address is None:
            return {}
        linked: Json = {} if self._report.image.placement else {"address": hexadecimal(address)}
        return linked if site is None else linked | {"section": site.section, "offset": site.offset}

    def _fingerprints(self, owner: str, key: str, code: str, ordinal: int) -> Json:
        """What a result is known by in another build: names, and no addresses."""
        text = "\0".join((self._report.image.path.name, owner, key, code, str(ordinal)))
        digest = hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:32]
        # The second one is what GitHub goes by; it would take the text of a source line, which it may not have.
        return {"partialFingerprints": {"staticCall/v1": digest, "primaryLocationLineHash": f"{digest[:16]}:1"}}

    def _places(self, address: int | None, site: Site | None, owner: str, kind: str) -> Json:
        """Where it is: in the source with the binary as a related location, or in the binary."""
        source = None if address is None else self._report.lines.get(address)
        logical = {"logicalLocations": [{"name": owner, "kind": kind}]} if owner and kind else {}
        binary: Json = {"physicalLocation": self._in_binary(address, site)}
        if source is None:
            return {"locations": [binary | logical]}
        related = [binary | {"id": 0, "message": {"text": "the instruction"}}]
        place: Json = {"physicalLocation": _in_source(source)}
        return {"locations": [place | logical], "relatedLocations": related, "analysisTarget": self._file}

    def _in_binary(self, address: int | None, site: Site | None) -> Json:
        image = self._report.image
        place: Json = {"artifactLocation": self._file}
        if address is None:
            return place
        length = site.instruction.length if site else 1
        if not image.layers:
            offset = site.file_offset if site else image.offset_of(address)
            if offset is not None and offset + length <= image.source.size:
                place["region"] = {"byteOffset": offset, "byteLength": length}
        if not image.placement:
            section = image.section_at(address)
            place["address"] = {
                **({"absoluteAddress": address} if address < _EXACT else {}),
                **({"length": length, "kind": "instruction"} if site else {"kind": "data"}),
                **({"name": section.name} if section else {}),
                "fullyQualifiedName": self._names.function(address) or f"{address:#x}",
            }
        return place


def _rule_of(code: str, level: str) -> Json:
    return {"ruleId": code, "ruleIndex": _RULE_INDEX[code], "level": level}


def _in_source(source: SourceLine) -> Json:
    return {"artifactLocation": _uri_of(source.path, "SRCROOT"), "region": {"startLine": source.line}}


def _uri_of(path: str, base: str) -> Json:
    """A path as a URI: of a file below the working folder, and where it was relative already, a relative one."""
    try:
        here = os.getcwd()  # noqa: PTH109 - a Path for each of many sites takes longer
    except OSError:
        here = ""  # somebody removed the folder
    return _located(path, base, here)


def _without_ups(path: str) -> str:
    """FILE(MEMBER) whose member stays inside of the archive: its name is anybody's, and may be `../../elsewhere`."""
    file, bracket, member = path.partition("(")
    if not path.endswith(")"):
        return path
    return file + bracket + "/".join(part for part in member.split("/") if part != "..")


@lru_cache(maxsize=4096)
def _located(path: str, base: str, here: str) -> Json:
    path = posixpath.normpath(path)
    if path.startswith("/"):
        inside = PurePosixPath(path)
        if not inside.is_relative_to(here):
            return {"uri": "file://" + _quoted(path)}
        path = str(inside.relative_to(here))
    return {"uri": _quoted(path), "uriBaseId": base}


def _quoted(path: str) -> str:
    # A colon in the first part of a relative one would be the end of a scheme.
    return quote(os.fsencode(path), safe="/+,=@~()!$&'*;")
