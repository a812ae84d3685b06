"""From what was located and judged to values that outlive the file."""

from __future__ import annotations

from collections.abc import Iterator

from staticcall.abi import elf64, x86
from staticcall.model.report import ImageReport
from staticcall.model.sites import Key, Located, Site, Source, TargetKind, Trampoline, Verdict
from staticcall.model.values import ImageValues, Summary
from staticcall.model.values import Key as KeyValue
from staticcall.model.values import Site as SiteValue
from staticcall.model.values import Trampoline as TrampolineValue
from staticcall.model.values import Verdict as VerdictValue
from staticcall.report.names import Names, hexadecimal

_VERDICTS = {verdict.value: verdict for verdict in VerdictValue}


def values_of(report: ImageReport) -> ImageValues:
    """What is told of an image; its sites, keys and trampolines come one by one while the image is open."""
    image = report.image
    names = Names(image, report.sites, report.keys)
    pairs = zip(report.sites, report.verdicts, strict=True)
    findings = report.findings
    if image.placement is not None:
        findings = tuple(finding._replace(address=None) for finding in findings)
    return ImageValues(
        path=image.path,
        sha256=report.sha256,
        build_id=image.build_id,
        elf_type=elf64.TYPE_NAMES[image.elf_type],
        container=tuple(layer.label for layer in image.layers),
        names=image.name_source,
        policy=report.policy,
        sites=(site_value(report, names, *pair) for pair in pairs),
        keys=(key_value(report, names, key) for key in report.keys),
        trampolines=_trampolines(report),
        summary=_summary(report),
        findings=findings,
    )


def site_value(report: ImageReport, names: Names, site: Site, verdict: Verdict) -> SiteValue:
    """One site."""
    key, address, image = report.located.key_of(site), site.address, report.image
    instruction, alignment, home = site.instruction, site.alignment, key.trampoline if key else None
    return SiteValue(
        site.record,
        None if alignment else address,
        site.section,
        site.offset,
        site.file_offset,
        names.function(address),
        key.name if key else None,
        home.label if home else None,
        site.tail,
        instruction.form,
        image.in_file(site.file_offset, site.code),
        names.destination(site),
        x86.crosses_anywhere(address, instruction.length, report.policy.line, alignment),
        _VERDICTS[verdict.answer],
        verdict.reason,
        site.sources,
        Source.EDITS in site.sources,
        image.predicted(address),
        report.lines.get(address),
    )


def key_value(report: ImageReport, names: Names, key: Key) -> KeyValue:
    """One key."""
    direct, others = report.summary.by_key.get(key.address, (0, 0))
    kind = report.located.kind_of(key)
    return KeyValue(
        key.name,
        None if report.image.placement else key.address,
        not key.slot.elsewhere,
        key.slot.definition.owner if key.slot.definition else None,
        key.slot.definition.kind if key.slot.definition else kind,
        None if kind is TargetKind.NULL else names.function_of(key),
        key.trampoline.label if key.trampoline else None,
        direct + others,
        direct,
    )


def _trampolines(report: ImageReport) -> Iterator[TrampolineValue]:
    image, homes = report.image, _homes(report.located, report.keys)
    known = image.names_at({home.destination for home in homes if home.destination is not None})
    for home in homes:
        destination = home.destination
        yield TrampolineValue(
            home.name,
            None if image.placement else home.address,
            home.form,
            None if destination is None else known.get(destination) or hexadecimal(destination),
            home.code,
            home.signature,
        )


def _homes(located: Located, keys: tuple[Key, ...]) -> list[Trampoline]:
    """All trampolines, or those of the selected keys."""
    if len(keys) == len(located.keys):
        return list(located.trampolines.values())
    return [key.trampoline for key in keys if key.trampoline is not None]


def _summary(report: ImageReport) -> Summary:
    counts = report.summary
    return Summary(
        sites=counts.sites,
        direct=counts.direct,
        trampoline=counts.trampoline,
        undecided=counts.undecided,
        crossing=counts.crossing,
        forms=counts.forms,
        reasons={reason: count for (_, reason), count in counts.reasons.items()},
        keys=counts.keys,
        keys_used=counts.keys_used,
        pinned=counts.pinned,
    )
