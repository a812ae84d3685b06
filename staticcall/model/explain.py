"""All that is told of one site, or of one static call, before any renderer chose a form for it."""

from typing import NamedTuple

from staticcall.model.claims import Owner, Unreadable
from staticcall.model.image import Image
from staticcall.model.lines import SourceLine
from staticcall.model.sites import Finding, Key, Located, Policy, Site, Target, Verdict


class CodeLine(NamedTuple):
    """One instruction: its linked address, its bytes as the file has them, and its text.

    `leads_to` names what it calls, jumps to or reads, empty where it does not or nobody knows.
    """

    address: int
    code: bytes
    text: str
    leads_to: str = ""


class Stretch(NamedTuple):
    """Bytes of the file from a linked address on; None for those that it does not have."""

    address: int
    cells: tuple[int | None, ...]


class Rival(NamedTuple):
    """Somebody else whose table names code of the site: what it names there, and what follows from that."""

    owner: str
    address: int
    size: int
    effect: str


class Change(NamedTuple):
    """What would make a site direct under the policy: `how` in words, `flags` of a compiler or assembler, or empty."""

    how: str
    flags: str = ""


class State(NamedTuple):
    """A key and its trampoline in the file: whether they agree, in words, and None where that does not show."""

    key: Key
    target: Target
    coherent: bool | None
    remark: str
    function: str = ""
    destination: str = ""


class SiteStory(NamedTuple):
    """A site: `verdicts` are those of every policy with this line, `placements` how many of all places are direct.

    `placements` is None for a site whose address is final. `bytes_around` covers the cache lines that it touches.
    """

    site: Site
    function: str
    verdict: Verdict
    verdicts: tuple[tuple[Policy, Verdict], ...]
    crosses: bool | None
    code: tuple[CodeLine, ...]
    bytes_around: Stretch
    state: State | None
    rivals: tuple[Rival, ...]
    unreadable: tuple[Unreadable, ...]
    changes: tuple[Change, ...]
    line: SourceLine | None
    record_address: int | None
    placements: tuple[int, int] | None
    findings: tuple[Finding, ...]


class KeySite(NamedTuple):
    """One of a key's sites, with its verdict and where it is."""

    site: Site
    verdict: Verdict
    function: str
    line: SourceLine | None


class Candidate(NamedTuple):
    """A function that a key may be led to: its name, and what says so."""

    name: str
    source: str


class KeyStory(NamedTuple):
    """A static call: `type` is that of its functions as C has it, and `type_source` who says so; else both are empty.

    `candidates` is None where nobody looked for them, and `open` tells that there may be others.
    """

    state: State
    sites: tuple[KeySite, ...]
    type: str
    type_source: str
    candidates: tuple[Candidate, ...] | None
    open: bool
    findings: tuple[Finding, ...]


class Explanation(NamedTuple):
    """The answer to one question about a file: a site, or a key."""

    image: Image
    located: Located
    policy: Policy
    question: str
    story: SiteStory | KeyStory


EFFECTS = {
    Owner.ALTERNATIVES: "the kernel may put other code for this processor there",
    Owner.PARAVIRT: "the kernel puts other code for this hypervisor there",
    Owner.JUMP_LABELS: "the kernel turns a jump into a nop there, and back",
    Owner.RETPOLINES: "the kernel replaces a branch to a retpoline there",
    Owner.RETURNS: "the kernel puts there how this processor returns",
    Owner.CALLS: "the kernel may lead a call there to the accounting of its target",
    Owner.LOCKS: "the kernel takes a lock prefix away there on a single processor",
    Owner.EXCEPTIONS: "the kernel survives a fault there; nothing is written",
    Owner.KPROBE_BLACKLIST: "no kprobe is put there; nothing is written",
}
