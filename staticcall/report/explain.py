"""One site, or one static call, for a person: text of stable lines, in colour where a terminal takes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

from staticcall.abi import static_call
from staticcall.errors import printable
from staticcall.model.explain import CodeLine, Explanation, KeySite, KeyStory, SiteStory, State
from staticcall.model.lines import SourceLine
from staticcall.model.reasons import REASONS
from staticcall.model.sites import Answer, Finding, Policy, Site, TrampolineForm, Verdict
from staticcall.report.names import counted, shown

_ROW: Final = 16
_FEW: Final = 12
_WIDTH: Final = 11
_RESET: Final = "\x1b[0m"
_BOLD, _FAINT, _RED, _GREEN, _YELLOW, _MAGENTA, _CYAN = (f"\x1b[{number}m" for number in (1, 2, 31, 32, 33, 35, 36))
_ANSWERS: Final = {Answer.DIRECT: _GREEN, Answer.TRAMPOLINE: _YELLOW, Answer.UNDECIDED: _MAGENTA}
# A text, and the style that it is shown in.
_Piece = str | tuple[str, str]


def render_explanation(explanation: Explanation, *, colour: bool = False, verbose: bool = False) -> Iterator[str]:
    """The answer, line by line; without `colour` it is the same text. `verbose` shows all sites of a key."""
    story = explanation.story
    lines = _site(explanation, story) if isinstance(story, SiteStory) else _key(explanation, story, verbose=verbose)
    for line in lines:
        pieces = [line] if isinstance(line, str | tuple) else line
        yield "".join(_painted(piece, colour=colour) for piece in pieces).rstrip() + "\n"


_Line = _Piece | list[_Piece]


def _painted(piece: _Piece, *, colour: bool) -> str:
    """A piece as it is shown: names out of a file may hold anything, and a terminal obeys some of it."""
    if isinstance(piece, str):
        return printable(piece)
    text, style = piece
    return f"{style}{printable(text)}{_RESET}" if colour and text and style else printable(text)


def _title(text: str) -> _Line:
    return (text, _BOLD)


def _site(explanation: Explanation, story: SiteStory) -> Iterator[_Line]:
    site, policy, image = story.site, explanation.policy, explanation.image
    place = site.where if not story.function else f"{site.where}, {story.function}"
    yield [(shown(image.path), _BOLD), ": ", (place, _BOLD)]
    yield f"  in the source        {_source(story.line)}"
    state = story.state
    key = f"of static call {state.key.name}" if state else "of no static call that the file names"
    yield f"  site                 {key}"
    code = image.in_file(site.file_offset, site.code)
    yield f"  instruction          {_form(site)}, {counted(len(code), 'byte')}: {_hex(code)}"
    yield f"  known by             {', '.join(source.value for source in site.sources)}{_record(story)}"
    yield ""
    yield _title("code")
    yield from _code(story.code, site, explanation)
    yield ""
    yield from _picture(story, explanation)
    yield ""
    yield _title(f"verdicts, with cache lines of {policy.line} bytes")
    for one, verdict in story.verdicts:
        yield _verdict(one, verdict, chosen=one.name == policy.name)
    if story.placements and story.placements[1] > 1:
        direct, places = story.placements
        yield f"  its section may begin at {places} places of a line; at {direct} of them it is direct"
    if state:
        yield ""
        yield from _state(explanation, state)
    yield ""
    yield from _rivals(story, explanation)
    yield from _changes(story, policy)
    yield from _findings(story.findings)


def _source(line: SourceLine | None) -> str:
    return f"{line.path}:{line.line}" if line else "not known: the file has no line numbers for it"


def _form(site: Site) -> str:
    words = site.instruction.form.value.replace("_", " ")
    return f"{words} in tail position" if site.tail and "tail" not in words else words


def _record(story: SiteStory) -> str:
    site = story.site
    if site.record is None:
        return ""
    flags = " and ".join(name for bit, name in ((1, "TAIL"), (2, "INIT")) if site.flags & bit)
    where = f" at {story.record_address:#x}" if story.record_address is not None else ""
    return f"; record {site.record:,}{where}, {f'flag {flags}' if flags else 'no flags'}"


def _code(lines: Iterable[CodeLine], site: Site, explanation: Explanation) -> Iterator[_Line]:
    image = explanation.image
    for line in lines:
        own = line.address == site.address
        code = line.code if len(line.code) <= _WIDTH else line.code[: _WIDTH - 1]
        bytes_ = _hex(code) + (" .." if code != line.code else "")
        # The text of an object's code names the place already.
        leads = f"  <{line.leads_to}>" if line.leads_to and line.leads_to not in line.text else ""
        mark = ">" if own else " "
        text = f"{mark} {image.where(line.address)}  {bytes_:<{3 * _WIDTH}} {line.text}"
        yield [(f" {text}", _BOLD if own else ""), (leads, _CYAN)]


def _picture(story: SiteStory, explanation: Explanation) -> Iterator[_Line]:
    """The bytes of the lines, with the instruction in colour and marked below: ^^ opcode and prefixes, == the rest."""
    site, line, image = story.site, explanation.policy.line, explanation.image
    yield _title(_line_title(story, line))
    start, length = site.address, site.instruction.length
    style = _RED if story.crosses else _YELLOW if story.crosses is None else _GREEN
    known = not site.alignment or site.alignment >= line
    opcode_end = start + max(length - 4, 1)
    cells, first = story.bytes_around.cells, story.bytes_around.address
    row_size = min(_ROW, line) if known else _ROW
    for at in range(0, len(cells), row_size):
        row = range(first + at, min(first + at + row_size, first + len(cells)))
        if known and at and row.start % line == 0:
            yield ("  - - - - - - - - next line - - - - - - - -", style if story.crosses else _FAINT)
        pieces: list[_Piece] = [f"  {image.where(row.start)}  "]
        marks = " " * len(pieces[0])
        for address in row:
            cell = cells[address - first]
            own = start <= address < start + length
            pieces.append(("..", _FAINT) if cell is None else (f"{cell:02x}", style if own else ""))
            pieces.append(" ")
            marks += ("^^ " if address < opcode_end else "== ") if own else "   "
        yield pieces
        if marks.strip():
            yield (marks.rstrip(), style)


def _line_title(story: SiteStory, line: int) -> str:
    site, length = story.site, story.site.instruction.length
    if story.crosses is None:
        return f"cache lines of {line} bytes: whether it crosses one is known when its section has an address"
    if site.alignment and site.alignment < line:
        # Its section is aligned to less, and what is said holds wherever it begins.
        return (
            f"cache lines of {line} bytes: it {'crosses one' if story.crosses else 'lies in one'} wherever it ends up"
        )
    place = site.address % line
    if story.crosses:
        left = line - place
        return f"cache lines of {line} bytes: it crosses one, {left} of {length} bytes are before the border"
    return f"cache line of {line} bytes: it lies in one, from byte {place} to {place + length - 1}"


def _verdict(policy: Policy, verdict: Verdict, *, chosen: bool) -> _Line:
    mark = "*" if chosen else " "
    return [
        f" {mark} {policy.name.value:<12}",
        (f"{verdict.answer.value:<12}", _ANSWERS[verdict.answer]),
        f"{verdict.reason:<28}{REASONS[verdict.reason]}",
    ]


def _state(explanation: Explanation, state: State) -> Iterator[_Line]:
    image, key, home = explanation.image, state.key, state.key.trampoline
    yield _title("static call")
    where = "in another file" if key.slot.elsewhere else f"at {image.where(key.address)}"
    yield f"  key         {key.symbol or key.name} {where}, leads to {state.target.name}"
    if home is not None and home.form is TrampolineForm.ELSEWHERE:
        yield f"  trampoline  {static_call.TRAMPOLINE_PREFIX}{key.name} in another file"
    elif home is not None:
        leads = f" to {state.destination}" if state.destination else ""
        sign = f", signature {home.signature}" if home.signature else ""
        name = static_call.TRAMPOLINE_PREFIX + key.name if home.name == key.name else home.label
        own = image.in_file(image.offset_of(home.address) or 0, home.code)
        code = f": {_hex(own)}" if own else ""
        form = home.form.value.replace("_", " ")
        yield f"  trampoline  {name} at {image.where(home.address)}, {form}{leads}{sign}{code}"
    style = "" if state.coherent is None else _GREEN if state.coherent else _RED
    words = "" if state.coherent is None else "coherent: " if state.coherent else "not coherent: "
    yield ["  together    ", (words + state.remark, style)]


def _rivals(story: SiteStory, explanation: Explanation) -> Iterator[_Line]:
    yield _title("who else may patch there")
    if not explanation.image.kernel:
        yield "  nobody: only kernels have tables that name code to be patched"
    elif not story.rivals and not story.unreadable:
        # They look at the same records.
        probes = "; kprobes refuse them" if story.site.record is not None else ""
        yield f"  nobody: no other table of the kernel names any of these bytes{probes}"
    for rival in story.rivals:
        where = explanation.image.where(rival.address)
        yield [("  " + rival.owner, _YELLOW), f" names {where}, {counted(rival.size, 'byte')}: {rival.effect}"]
    for owner, address, reason in story.unreadable:
        yield [("  " + owner, _RED), f" at {explanation.image.where(address)} cannot be read: {reason}"]


def _changes(story: SiteStory, policy: Policy) -> Iterator[_Line]:
    if story.verdict.answer is Answer.DIRECT:
        return
    yield ""
    yield _title(f"what would make it direct under {policy.name.value}")
    if not story.changes:
        yield "  nothing that is known here"
    for change in story.changes:
        yield f"  {change.how}"
        if change.flags:
            yield ("    " + change.flags, _CYAN)
    others = [one.name.value for one, verdict in story.verdicts if verdict.answer is Answer.DIRECT]
    if others:
        yield f"  another policy: {', '.join(others)}"


def _findings(findings: tuple[Finding, ...]) -> Iterator[_Line]:
    if findings:
        yield ""
        yield _title(f"findings ({len(findings)})")
    for finding in findings:
        style = {"error": _RED, "warning": _YELLOW}.get(finding.severity.value, "")
        yield [("  " + finding.severity.value, style), f": {finding.message} [{finding.code}]"]


def _key(explanation: Explanation, story: KeyStory, *, verbose: bool) -> Iterator[_Line]:
    image, policy, state = explanation.image, explanation.policy, story.state
    yield [(shown(image.path), _BOLD), ": ", (f"static call {state.key.name}", _BOLD)]
    if story.type:
        yield f"  {story.type}   (by {story.type_source})"
    else:
        module = "; --vmlinux KERNEL may help" if image.placement and image.kernel else ""
        yield f"  its type is not known: there is neither BTF nor DWARF that says it{module}"
    yield ""
    yield from _state(explanation, state)
    yield ""
    yield from _targets(explanation, story)
    yield ""
    yield from _sites(story, policy, verbose=verbose)
    yield from _findings(story.findings)


def _targets(explanation: Explanation, story: KeyStory) -> Iterator[_Line]:
    yield _title("where it may lead")
    key = story.state.key
    if key.slot.elsewhere:
        yield "  what the file that defines it says"
        return
    if story.candidates is not None:
        for candidate in story.candidates:
            yield f"  {candidate.name:<40} {candidate.source}"
        if story.open:
            yield "  and functions that the file does not tell"
    kinds = "a function of its type" if story.type else "a function, if its type is the key's"
    yield f"  staticcall patch --set {key.name}=TARGET takes {kinds}, NULL or RET0, as far as that is safe"
    if story.candidates is None and explanation.image.placement is None:
        yield "  -v searches the code for the functions that updates lead it to"


def _sites(story: KeyStory, policy: Policy, *, verbose: bool) -> Iterator[_Line]:
    sites = story.sites
    counts = Counter(one.verdict.answer for one in sites)
    yield _title(f"sites ({len(sites):,}), under {policy.name.value} with cache lines of {policy.line} bytes")
    for answer in Answer:
        if counts[answer]:
            yield [("  " + f"{answer.value:<12}", _ANSWERS[answer]), f"{counts[answer]:>7,}"]
    if story.sites and not counts[Answer.DIRECT] + counts[Answer.UNDECIDED]:
        yield "  so each goes by the trampoline, which costs one jump more"
    reasons = Counter(one.verdict.reason for one in sites if one.verdict.answer is not Answer.DIRECT)
    if reasons:
        yield ""
        yield _title("why not all are direct")
        for reason, count in reasons.most_common():
            yield f"  {reason:<28}{count:>7,}  {REASONS[reason]}"
    ordered = sorted(sites, key=lambda one: one.verdict.answer is Answer.DIRECT)
    few = ordered if verbose else ordered[:_FEW]
    if few:
        yield ""
        yield _title("where")
        yield from map(_place, few)
    if len(few) < len(sites):
        yield f"  and {len(sites) - len(few):,} more (-v shows all)"


def _place(one: KeySite) -> _Line:
    line = f"  {one.line.path}:{one.line.line}" if one.line else ""
    return [
        f"  {one.site.where}  ",
        (f"{one.verdict.answer.value:<12}", _ANSWERS[one.verdict.answer]),
        f"{one.verdict.reason:<28}{one.function or one.site.section}",
        (line, _FAINT),
    ]


def _hex(data: bytes) -> str:
    return data.hex(" ")
