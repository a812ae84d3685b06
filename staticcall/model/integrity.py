"""What run-time patching may make of an image's code, and what a memory image has there."""

from collections.abc import Mapping
from typing import NamedTuple

from staticcall.model.form import Word
from staticcall.model.sites import Finding


class TargetSource(Word):
    """How it is known that a key may lead to a function."""

    INITIAL = "initial"
    UPDATE = "update"
    PROBE = "probe"
    HOOK = "hook"
    DATA = "data"
    RET0 = "ret0"
    OPTION = "option"


class KnownTargets(NamedTuple):
    """The functions that a key may lead to, by address, each with how that is known.

    `open` says that there are updates of the key whose function the image does not tell, so that others may be right
    too: a module's, a probe's, one that is chosen at run time.
    """

    functions: Mapping[int, TargetSource]
    open: bool


class State(Word):
    """What one content of a range does."""

    FILE = "file"
    TRAMPOLINE = "trampoline"
    FUNCTION = "function"
    ACCOUNTED = "accounted"
    NULL = "null"
    RETURN = "return"
    RETURN_THUNK = "return_thunk"
    RET0 = "ret0"
    WARN_TRAP = "warn_trap"


class Content(NamedTuple):
    """Bytes that a range may hold, what they do, and the function that they lead to, empty where none.

    `func` is what the key holds when the range has this content, as a linked address, 0 for NULL; None where the
    content fits whatever the key holds.
    """

    data: bytes
    state: State
    target: str
    func: int | None


class RangeKind(Word):
    """What stands in a range."""

    SITE = "site"
    TRAMPOLINE = "trampoline"


class Range(NamedTuple):
    """Bytes that run-time patching may change, and all that they may be.

    `address` is linked, `offset` counts from the start of the section. `initial` says that the section is freed
    after the start. `behind` are the bytes after the range that never change: a trampoline's signature. All contents
    are of one length.
    """

    kind: RangeKind
    address: int
    section: str
    offset: int
    file_offset: int
    key: int | None
    tail: bool
    initial: bool
    behind: bytes
    contents: tuple[Content, ...]

    @property
    def length(self) -> int:
        """The bytes in the range."""
        return len(self.contents[0].data)


class AllowList(NamedTuple):
    """The ranges of an image in order of their addresses, and what its keys, by address, may lead to."""

    ranges: tuple[Range, ...]
    targets: Mapping[int, KnownTargets]


class Judgement(Word):
    """What becomes of a range in a memory image."""

    LEGAL = "legal"
    UNKNOWN = "unknown"
    CORRUPT = "corrupt"
    FREED = "freed"
    ABSENT = "absent"


class Observation(NamedTuple):
    """A range as it is in memory. `state` is that of its content, `int3` that its first byte is a breakpoint.

    `destination` is where a branch that the list does not have leads to, as a linked address; `agrees` whether the
    key in memory says the same as the range, None where that cannot be told.
    """

    range: Range
    judgement: Judgement
    data: bytes
    state: State | None = None
    int3: bool = False
    destination: int | None = None
    agrees: bool | None = None


class Place(NamedTuple):
    """Where an image is in a memory image.

    `shift` is what is to be added to a linked address to find it there; `slide` how far the image was moved from where
    it was linked, None where that cannot be told; `origin` how that became known, in words.
    """

    physical: bool
    shift: int
    slide: int | None
    origin: str


class Inspection(NamedTuple):
    """All ranges of an image as a memory image has them, and what is odd about them."""

    place: Place
    observations: tuple[Observation, ...]
    findings: tuple[Finding, ...]
