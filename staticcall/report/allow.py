"""Allow-lists and what memory has of them: as JSON, and the comparison also as text for a person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from staticcall.abi import elf64
from staticcall.errors import printable
from staticcall.model.image import Image
from staticcall.model.integrity import AllowList, Inspection, Judgement, Observation, Place, Range, RangeKind
from staticcall.model.sites import Located
from staticcall.report.json import array_of, compact, document_head, finding_value
from staticcall.report.names import hexadecimal, shown

SCHEMA_VERSION = 1

_FEW_FINDINGS = 20


def render_allow_list(image: Image, located: Located, allowed: AllowList, names: Mapping[int, str]) -> Iterator[str]:
    """The allow-list as one JSON document, in pieces: one line per key and per range."""
    yield f'{compact(_head(image, located))[:-1]},"int3":true'
    yield from array_of("keys", (_key(located, allowed, names, address) for address in allowed.targets))
    yield from array_of("ranges", (_range(image, located, one) for one in allowed.ranges))
    yield "}\n"


def _head(image: Image, located: Located) -> dict[str, object]:
    return {
        **document_head(),
        "image": {
            "path": shown(image.path),
            "build_id": image.build_id,
            "elf_type": elf64.TYPE_NAMES[image.elf_type],
            "machine": "x86_64",
            "banner": located.dialect.banner or None,
        },
    }


def _key(located: Located, allowed: AllowList, names: Mapping[int, str], address: int) -> dict[str, object]:
    known = allowed.targets[address]
    return {
        "name": located.keys[address].name,
        "address": hexadecimal(address),
        "open": known.open,
        "targets": [
            {"name": names.get(function), "address": hexadecimal(function), "source": source.value}
            for function, source in known.functions.items()
        ],
    }


def _range(image: Image, located: Located, one: Range) -> dict[str, object]:
    return {
        **_place(image, located, one),
        "file_offset": one.file_offset,
        "length": one.length,
        "initial": one.initial,
        "contents": [
            {"bytes": content.data.hex(), "state": content.state.value, "target": content.target or None}
            for content in one.contents
        ],
    }


def _place(image: Image, located: Located, one: Range) -> dict[str, object]:
    key = located.keys.get(one.key or 0)
    return {
        "address": hexadecimal(one.address),
        "section": one.section,
        "offset": one.offset,
        "kind": one.kind.value,
        "key": key.name if key else None,
        "function": image.symbols.function_at(one.address) if one.kind is RangeKind.SITE else None,
    }


def render_inspection(
    image: Image, located: Located, core: str, inspection: Inspection, *, verbose: bool = False
) -> Iterator[str]:
    """The comparison as one JSON document, in pieces: a line per range that is not as it should be, or per range."""
    head = _head(image, located)
    place = inspection.place
    head["core"] = {
        "path": core,
        "addresses": "physical" if place.physical else "virtual",
        "slide": hexadecimal(place.slide),
        "origin": place.origin,
    }
    head["summary"] = _summary(inspection)
    yield compact(head)[:-1]
    wanted = (one for one in inspection.observations if verbose or _odd(one))
    yield from array_of("ranges", (_observation(image, located, one) for one in wanted))
    yield from array_of("findings", map(finding_value, inspection.findings))
    yield "}\n"


def _odd(one: Observation) -> bool:
    return one.judgement in (Judgement.CORRUPT, Judgement.UNKNOWN) or one.int3 or one.agrees is False


def _summary(inspection: Inspection) -> dict[str, object]:
    def counts(kind: RangeKind) -> dict[str, int]:
        found = Counter(one.judgement for one in inspection.observations if one.range.kind is kind)
        return {judgement.value: found[judgement] for judgement in Judgement}

    states = Counter(one.state.value for one in inspection.observations if one.state is not None)
    return {
        "sites": counts(RangeKind.SITE),
        "trampolines": counts(RangeKind.TRAMPOLINE),
        "states": dict(sorted(states.items())),
        "int3": sum(one.int3 for one in inspection.observations),
    }


def _observation(image: Image, located: Located, one: Observation) -> dict[str, object]:
    return {
        **_place(image, located, one.range),
        "judgement": one.judgement.value,
        "bytes": one.data.hex(),
        "state": one.state.value if one.state else None,
        "int3": one.int3,
        "destination": None if one.destination is None else hexadecimal(one.destination),
        "agrees_with_key": one.agrees,
    }


def render_inspection_text(core: str, inspection: Inspection, *, verbose: bool = False) -> Iterator[str]:
    """The comparison for a person: where the image is, the counts, and what is wrong."""
    for line in _text(core, inspection, verbose=verbose):
        yield printable(line) + "\n"


def _text(core: str, inspection: Inspection, *, verbose: bool) -> Iterator[str]:
    yield core
    yield f"  {_where(inspection.place)}"
    yield f"  {'':<12}" + "".join(f"{judgement.value:>10}" for judgement in Judgement)
    for kind in RangeKind:
        found = Counter(one.judgement for one in inspection.observations if one.range.kind is kind)
        yield f"  {kind.value + 's':<12}" + "".join(f"{found[judgement]:>10,}" for judgement in Judgement)
    steps = sum(one.int3 for one in inspection.observations)
    if steps:
        yield f"  {steps:,} of them in the middle of an update, int3 on the first byte"
    findings = inspection.findings
    if findings:
        yield ""
        yield f"findings ({len(findings):,})"
        few = findings if verbose else findings[:_FEW_FINDINGS]
        yield from (f"  {finding.severity.value}: {finding.message} [{finding.code}]" for finding in few)
        if len(few) < len(findings):
            yield f"  and {len(findings) - len(few):,} more (-v shows all)"


def _where(place: Place) -> str:
    addresses = "physical" if place.physical else "virtual"
    slide = "a slide that it does not tell" if place.slide is None else f"slide {place.slide:#x}"
    return f"{addresses} addresses, {slide} ({place.origin})"
