"""Static-call sites, keys and trampolines as located, and the verdict on each site."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

from staticcall.abi.generations import LATEST, Generation
from staticcall.model.form import Instruction, Word


class Source(Word):
    """What a site is known by."""

    TABLE = "table"
    RELOCATION = "relocation"
    SCAN = "scan"
    EDITS = "edits"


class Site(NamedTuple):
    """One place that calls or jumps through a static call.

    `address` is the record's address: the instruction's first byte, prefixes included; `offset` counts from the
    start of its section. `code` is the instruction as it is in the file. `key` is the key's address with the flags
    removed; a site found by code only has the key of the trampoline it leads to, and `record` None. In a
    relocatable object addresses are pretended (see `Placement`), and `alignment` is that of the section: all that
    is known of where it will be. It is 0 where the address is final.
    """

    record: int | None
    address: int
    file_offset: int
    section: str
    offset: int
    alignment: int
    key: int | None
    flags: int
    instruction: Instruction
    code: bytes
    sources: tuple[Source, ...]

    @property
    def where(self) -> str:
        """The site's place in words: its address, or section and offset in a relocatable object."""
        return f"{self.section}+{self.offset:#x}" if self.alignment else f"{self.address:#x}"

    @property
    def tail(self) -> bool:
        """Whether control does not come back here (the record's TAIL flag)."""
        return bool(self.flags & 1)


class TrampolineForm(Word):
    """What a trampoline does, by kernel generation."""

    JMP = "jmp"
    RET = "ret"
    INDIRECT_JMP = "indirect_jmp"
    CALL_RET = "call_ret"
    ELSEWHERE = "elsewhere"
    UNKNOWN = "unknown"


class Trampoline(NamedTuple):
    """One out-of-line trampoline.

    `destination` is where it leads when that is known from its own bytes; an indirect one names the
    `slot` it reads. `signature` is `ud1`, `SCT` or empty.
    """

    name: str
    address: int
    form: TrampolineForm
    destination: int | None
    slot: int | None
    signature: str
    code: bytes

    @property
    def label(self) -> str:
        """The name, or the address where the file has none."""
        return self.name or f"{self.address:#x}"


class TargetKind(Word):
    """What a key leads to, as far as the bytes at a site depend on it."""

    FUNCTION = "function"
    NULL = "null"
    RET0 = "ret0"
    RUNTIME = "runtime"


class Definition(NamedTuple):
    """What the file that defines a key says of it: `owner` is `vmlinux` or a module's name, `target` a function's."""

    owner: str
    kind: TargetKind
    target: str


class Slot(NamedTuple):
    """Where a key keeps its `func`, and how its value comes to be at run time.

    `file_offset` is where an edit of the value goes: the slot's own bytes, or the addend of its entry in
    `.rela.dyn` (`by_addend`). `symbol` names the dynamic symbol of a slot whose value only the dynamic
    linker knows. A slot `elsewhere` belongs to a key that another object defines;
    `definition` is what that one says, where it was asked.
    """

    file_offset: int | None
    value: int
    by_addend: bool = False
    symbol: str = ""
    elsewhere: bool = False
    definition: Definition | None = None


class Key(NamedTuple):
    """One static call: its key, present target and trampoline.

    `name` is without the key's prefix. What the slot leads to has no name here: naming it takes a walk over
    the symbol table, and few who have a key want to know.
    """

    name: str
    symbol: str
    address: int
    slot: Slot
    trampoline: Trampoline | None

    @property
    def live(self) -> bool:
        """Whether a running program may lead it elsewhere: its trampoline is the one of staticcall.h.

        Such a trampoline reads the key, which therefore is never 0, and the runtime knows sites by their branches, so
        those stay calls and jumps, whatever the target.
        """
        home = self.trampoline
        return bool(home and home.form is TrampolineForm.INDIRECT_JMP and home.slot == self.address and home.signature)


class Target(NamedTuple):
    """Where a static call leads or shall lead.

    `address` is 0 for NULL, but for that of a live key, and for what only run time knows.
    """

    kind: TargetKind
    name: str
    address: int


class Dialect(NamedTuple):
    """The bytes that the code in this very file uses for each state of a site, by evidence where there is any.

    `return_thunk` is the address of `__x86_return_thunk`, `return0` that of `__static_call_return0`,
    `plain_return` that of `__static_call_return`, `nop_function` that of `__static_call_nop`, None where the image
    has no such symbol. `release` is the kernel's version, for a `module` or another object that of the kernel that it
    was built for; `generation` is what that kernel accepts. `nop` is empty where the processor decides, `ret0` where
    the kernel calls the function like any other.
    """

    kernel: bool
    release: tuple[int, int] | None
    banner: str
    nop: bytes
    ret0: bytes
    return_thunk: int | None
    return0: int | None
    plain_return: int | None
    nop_function: int | None = None
    module: bool = False
    generation: Generation = LATEST


class Severity(Word):
    """How bad a finding is."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class Finding(NamedTuple):
    """Something a person should know about the file; `code` is stable and kebab-case."""

    code: str
    severity: Severity
    message: str
    address: int | None = None


class Table(NamedTuple):
    """Where the records are: linked start and end address, and how that became known."""

    start: int
    stop: int
    origin: str


_NO_NAMES: Mapping[int, str] = {}


class Located(NamedTuple):
    """Everything that is known of an image's static calls before any judgement."""

    table: Table | None
    sites: tuple[Site, ...]
    keys: dict[int, Key]
    trampolines: dict[int, Trampoline]
    dialect: Dialect
    findings: tuple[Finding, ...]

    def key_of(self, site: Site) -> Key | None:
        """The key a site belongs to, or None where the image does not say."""
        return None if site.key is None else self.keys.get(site.key)

    def by_another(self, key: Key, site: Site) -> bool:
        """Whether a site of this key leads to the trampoline of another one."""
        destination = site.instruction.destination
        return bool(key.trampoline and destination in self.trampolines and destination != key.trampoline.address)

    def kind_of(self, key: Key) -> TargetKind:
        """What kind of target a key leads to at present, as far as this file says."""
        slot = key.slot
        if slot.symbol or slot.elsewhere:
            return TargetKind.RUNTIME
        if not slot.value or (slot.value == self.dialect.nop_function and key.live):
            return TargetKind.NULL
        return TargetKind.RET0 if slot.value == self.dialect.return0 else TargetKind.FUNCTION

    def target_of(self, key: Key, names: Mapping[int, str] = _NO_NAMES) -> Target:
        """What a key leads to at present, by its name if `names` has one for the address."""
        kind, slot = self.kind_of(key), key.slot
        if kind is TargetKind.NULL:
            return Target(kind, "NULL", slot.value)
        if slot.definition:
            return Target(kind, f"{slot.definition.target} ({slot.definition.owner})", 0)
        if slot.elsewhere:
            return Target(kind, "(what another file says)", 0)
        return Target(kind, slot.symbol or names.get(slot.value) or f"{slot.value:#x}", slot.value)


class PolicyName(Word):
    """The rules by which a site is patched directly; see `staticcall.classify`."""

    LUTOMIRSKI = "lutomirski"
    REL32 = "rel32"
    BLOCK8 = "block8"
    TORVALDS = "torvalds"
    KERNEL = "kernel"


class Policy(NamedTuple):
    """A policy and the size in bytes of the cache line it reckons with."""

    name: PolicyName = PolicyName.LUTOMIRSKI
    line: int = 64


class Answer(Word):
    """What becomes of a site."""

    DIRECT = "direct"
    TRAMPOLINE = "trampoline"
    UNDECIDED = "undecided"


class Verdict(NamedTuple):
    """The answer for one site and the kebab-case code of the rule that gave it."""

    answer: Answer
    reason: str


class Judge(Protocol):
    """The classifier behind a policy, for one image."""

    def __call__(self, sites: Iterable[Site], target: TargetKind | None = None) -> list[Verdict]:
        """Return one verdict per site, for what its key leads to or, with `target`, shall lead to."""
        ...
