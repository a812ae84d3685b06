"""What a report says, as values that outlive the file: by names and final addresses, and in no need of an open image.

The JSON report and the Python API tell these. They are flat: a large image has sites by the million.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from staticcall.errors import printable
from staticcall.model.form import Form, Word
from staticcall.model.image import NameSource
from staticcall.model.lines import SourceLine
from staticcall.model.sites import Finding, Policy, Source, TargetKind, TrampolineForm


class Verdict(Word):
    """What a policy makes of a site."""

    DIRECT = "direct"
    TRAMPOLINE = "trampoline"
    UNDECIDED = "undecided"


class Site(NamedTuple):
    """One place that calls or jumps through a static call, and what the policy makes of it.

    Attributes:
        record: The number of its record in the table, counted from 0; None for a site without a record.
        address: Linked address of the instruction's first byte, prefixes included; None in a relocatable object.
        section: Name of its section.
        offset: Bytes from the start of the section.
        file_offset: Bytes from the start of the ELF file; of a packed file, of what is unpacked.
        function: The function that it lies in, as `name+0x12`; None where no symbol says.
        key: Name of its key, without `__SCK__`; None where the file does not say.
        trampoline: Name of the key's trampoline, without `__SCT__`, or its address where it has no name.
        tail: Whether control does not come back here (the record's TAIL flag).
        form: The shape of the instruction.
        code: The instruction's bytes as they are in the file.
        destination: Where the instruction leads: a symbol, else an address in hex; None where it leads nowhere.
        crosses_line: Whether the instruction crosses a cache line; None where that depends on the final address.
        verdict: Whether the policy patches it directly.
        reason: The kebab-case code of the rule that gave the verdict.
        sources: What the site is known by.
        pinned: Whether a patch took its record, so that nobody leads it elsewhere any more.
        predicted: Whether its place in a cache line is foretold from what the kernel's loader does with modules.
        source_line: Its line in the source, where that was asked for and the file's DWARF knows.
    """

    record: int | None
    address: int | None
    section: str
    offset: int
    file_offset: int
    function: str | None
    key: str | None
    trampoline: str | None
    tail: bool
    form: Form
    code: bytes
    destination: str | None
    crosses_line: bool | None
    verdict: Verdict
    reason: str
    sources: tuple[Source, ...]
    pinned: bool = False
    predicted: bool = False
    source_line: SourceLine | None = None

    @property
    def length(self) -> int:
        """Bytes of the instruction."""
        return len(self.code)

    @property
    def function_name(self) -> str | None:
        """The function that it lies in, without the offset."""
        return None if self.function is None else self.function.rpartition("+")[0]

    @property
    def where(self) -> str:
        """Its place in words: the address in hex, or section and offset in a relocatable object."""
        return f"{self.section}+{self.offset:#x}" if self.address is None else f"{self.address:#x}"

    def __repr__(self) -> str:
        place = f" in {self.function}" if self.function else ""
        says = f"{self.verdict} ({self.reason})"
        return printable(f"<Site {self.where}{place}: {self.form} of {self.key or '?'}, {says}>")


class Key(NamedTuple):
    """One static call, by its key.

    Attributes:
        name: Its name, without `__SCK__`; not always unique in an object or a program of several.
        address: Linked address of the key; None in a relocatable object.
        defined: Whether this file defines it; a module uses keys of its kernel.
        defined_in: Who defines it instead, `vmlinux` or a module, where these were given and say so.
        kind: What it leads to, as far as the bytes at a site depend on it.
        func: The function that it leads to: a symbol, else an address in hex; None for NULL or not known.
        trampoline: Name of its trampoline, without `__SCT__`, or its address; None where it has none.
        sites: How many of the report's sites are its.
        direct: How many of these the policy patches directly.
    """

    name: str
    address: int | None
    defined: bool
    defined_in: str | None
    kind: TargetKind
    func: str | None
    trampoline: str | None
    sites: int
    direct: int

    def __repr__(self) -> str:
        leads = self.func or ("NULL" if self.kind is TargetKind.NULL else "?")
        return printable(f"<Key {self.name} -> {leads}: {self.sites:,} of its sites here, {self.direct:,} direct>")


class Trampoline(NamedTuple):
    """The out-of-line trampoline of a key.

    Attributes:
        name: Its name, without `__SCT__`; empty where the file has none.
        address: Linked address; None in a relocatable object.
        form: What it does.
        destination: Where it leads by its own bytes: a symbol, else an address in hex; None where these do not say.
        code: Its bytes, as they are when it is loaded where it is linked.
        signature: The mark behind it, `ud1` or `SCT`, by which kernels know trampolines; empty where there is none.
    """

    name: str
    address: int | None
    form: TrampolineForm
    destination: str | None
    code: bytes
    signature: str

    def __repr__(self) -> str:
        where = "" if self.address is None else f" at {self.address:#x}"
        leads = f" to {self.destination}" if self.destination else ""
        return printable(f"<Trampoline {self.name or '?'}{where}: {self.form}{leads}>")


class Summary(NamedTuple):
    """The counts of a report.

    Attributes:
        sites: All sites of the report; `direct`, `trampoline` and `undecided` add up to it.
        direct: Sites that the policy patches directly.
        trampoline: Sites that stay calls of their trampoline.
        undecided: Sites whose verdict depends on where a linker or a loader puts them.
        crossing: Sites whose instruction crosses a cache line, whatever the policy makes of that.
        forms: Sites by the form of their instruction, the most frequent first.
        reasons: Sites by the reason of their verdict, the most frequent first.
        keys: Keys of the report, those without sites among them.
        keys_used: Keys with at least one site.
        pinned: Sites without a record, by the edits that were given; None where none were.
    """

    sites: int
    direct: int
    trampoline: int
    undecided: int
    crossing: int
    forms: Mapping[str, int]
    reasons: Mapping[str, int]
    keys: int
    keys_used: int
    pinned: int | None = None


class ImageValues(NamedTuple):
    """One image of a report; what there is much of may come one by one, and only once."""

    path: Path
    sha256: str | None
    build_id: str | None
    elf_type: str
    container: tuple[str, ...]
    names: NameSource
    policy: Policy
    sites: Iterable[Site]
    keys: Iterable[Key]
    trampolines: Iterable[Trampoline]
    summary: Summary
    findings: tuple[Finding, ...]
