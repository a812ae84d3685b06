"""One site, or one static call, for programs."""

from __future__ import annotations

from staticcall.abi import elf64
from staticcall.model.explain import Explanation, KeySite, KeyStory, SiteStory, State
from staticcall.model.lines import SourceLine
from staticcall.model.reasons import REASONS
from staticcall.model.sites import Finding, Key, Site, TargetKind, TrampolineForm, Verdict
from staticcall.report.json import compact, document_head, finding_value, policy_value
from staticcall.report.names import hexadecimal, shown


def render_explanation_json(explanation: Explanation) -> str:
    """The answer as one document, see `explain.schema.json`."""
    image, policy, story = explanation.image, explanation.policy, explanation.story
    document: dict[str, object] = {
        **document_head(policy),
        "image": {
            "path": shown(image.path),
            "build_id": image.build_id,
            "elf_type": elf64.TYPE_NAMES[image.elf_type],
        },
        "question": explanation.question,
    }
    if isinstance(story, SiteStory):
        document["site"] = _site(explanation, story)
    else:
        document["key"] = _key(explanation, story)
    return compact(document) + "\n"


def _verdict(verdict: Verdict) -> dict[str, object]:
    return {"verdict": verdict.answer.value, "reason": verdict.reason, "rule": REASONS[verdict.reason]}


def _place(explanation: Explanation, address: int, *, elsewhere: bool = False) -> dict[str, object]:
    """An address, and the same in words, which is all that an object has, and not of what is in another file."""
    image = explanation.image
    if elsewhere:
        return {"address": None, "where": None}
    return {"address": None if image.placement else hexadecimal(address), "where": image.where(address)}


def _source(line: SourceLine | None) -> dict[str, object] | None:
    return None if line is None else {"path": line.path, "line": line.line}


def _site_head(explanation: Explanation, site: Site, function: str) -> dict[str, object]:
    return {
        **_place(explanation, site.address),
        "section": site.section,
        "offset": site.offset,
        "file_offset": site.file_offset,
        "function": function or None,
        "form": site.instruction.form.value,
        "bytes": explanation.image.in_file(site.file_offset, site.code).hex(),
    }


def _site(explanation: Explanation, story: SiteStory) -> dict[str, object]:
    site, stretch = story.site, story.bytes_around
    return {
        **_site_head(explanation, site, story.function),
        "record": site.record,
        "record_address": hexadecimal(story.record_address),
        "flags": site.flags,
        "sources": [source.value for source in site.sources],
        "source_line": _source(story.line),
        "crosses_line": story.crosses,
        "verdicts": [policy_value(policy) | _verdict(verdict) for policy, verdict in story.verdicts],
        "placements": None if story.placements is None else {"direct": story.placements[0], "all": story.placements[1]},
        "instructions": [
            _place(explanation, line.address)
            | {"bytes": line.code.hex(), "text": line.text, "leads_to": line.leads_to or None}
            for line in story.code
        ],
        "bytes_around": _place(explanation, stretch.address)
        | {"bytes": ["" if cell is None else f"{cell:02x}" for cell in stretch.cells]},
        "key": None if story.state is None else _state(explanation, story.state),
        "rivals": [
            _place(explanation, rival.address) | {"table": rival.owner, "size": rival.size, "effect": rival.effect}
            for rival in story.rivals
        ],
        "unreadable_tables": [
            _place(explanation, address) | {"table": owner.value, "reason": reason}
            for owner, address, reason in story.unreadable
        ],
        "changes": [{"how": change.how, "flags": change.flags or None} for change in story.changes],
        "findings": [_finding(explanation, finding) for finding in story.findings],
    }


def _state(explanation: Explanation, state: State) -> dict[str, object]:
    key, home = state.key, state.key.trampoline
    return {
        "name": key.name,
        **_place(explanation, key.address, elsewhere=key.slot.elsewhere),
        "func": None if state.target.kind is TargetKind.NULL else state.target.name,
        "trampoline": None if home is None else _trampoline(explanation, key, state),
        "coherent": state.coherent,
        "remark": state.remark,
    }


def _trampoline(explanation: Explanation, key: Key, state: State) -> dict[str, object]:
    image, home = explanation.image, key.trampoline
    assert home is not None, "asked for a trampoline that is there"
    return {
        "name": home.label,
        **_place(explanation, home.address, elsewhere=home.form is TrampolineForm.ELSEWHERE),
        "form": home.form.value,
        "bytes": image.in_file(image.offset_of(home.address) or 0, home.code).hex(),
        "signature": home.signature,
        "destination": state.destination or None,
    }


def _key(explanation: Explanation, story: KeyStory) -> dict[str, object]:
    return {
        **_state(explanation, story.state),
        "type": story.type or None,
        "type_source": story.type_source or None,
        "targets": None
        if story.candidates is None
        else [{"name": candidate.name, "source": candidate.source} for candidate in story.candidates],
        "open": story.open,
        "sites": [_key_site(explanation, one) for one in story.sites],
        "findings": [_finding(explanation, finding) for finding in story.findings],
    }


def _key_site(explanation: Explanation, one: KeySite) -> dict[str, object]:
    return {
        **_site_head(explanation, one.site, one.function),
        "record": one.site.record,
        "source_line": _source(one.line),
        **_verdict(one.verdict),
    }


def _finding(explanation: Explanation, finding: Finding) -> dict[str, object]:
    # Addresses in objects are only pretended.
    return finding_value(finding._replace(address=None) if explanation.image.placement else finding)
