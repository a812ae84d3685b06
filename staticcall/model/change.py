"""What is to be written, and what was proved of it."""

from typing import NamedTuple, Self

from staticcall.model.form import Form, Word
from staticcall.model.sites import Key, Target


class EditKind(Word):
    """What an edit touches; the values are part of the public edits file."""

    SITE = "site"
    TRAMPOLINE = "trampoline"
    KEY = "key"
    RELOCATION = "relocation"
    RECORD = "record"
    LAYOUT = "layout"
    BUILD_ID = "build-id"


class Edit(NamedTuple):
    """Bytes to replace: the old ones are carried along, so every edit can be checked and undone.

    `file_offset` counts in the original, and only the end of an object may change its length. For code, `form` and
    `destination` say what the new bytes are meant to be, for a decoder that did not write them; for a record
    `destination` is the linked address of the one that it becomes a copy of. `key` is the key's
    name, empty for what belongs to the whole file; `address` is the linked address of the first byte, None in a
    relocatable object.
    """

    file_offset: int
    old: bytes
    new: bytes
    kind: EditKind
    key: str
    address: int | None
    form: Form | None = None
    destination: int | None = None

    def inverse(self) -> Self:
        """The edit that takes this one back."""
        return self._replace(old=self.new, new=self.old, form=None, destination=None)


class KeyChange(NamedTuple):
    """One key's transaction: what it led to, what it leads to, and how many of its sites go which way.

    `pinned` counts the direct ones that lost their records, None where that was not wished for. `types` says
    what is known of the types of the two targets, empty where nothing needs to be.
    """

    key: Key
    before: Target
    after: Target
    direct: int
    by_trampoline: int
    pinned: int | None = None
    types: str = ""


class Plan(NamedTuple):
    """Sorted, disjoint edits of one file, grouped by the key they belong to.

    `undefined` are the names of functions that an object shall refer to and does not know yet.
    """

    edits: tuple[Edit, ...]
    changes: tuple[KeyChange, ...]
    undefined: tuple[str, ...] = ()


class OuterChange(NamedTuple):
    """How a container around a patched file differs from the original: in one range.

    `layers` are the names of what is around the file, the outermost first. The patched container has `new_size` other
    bytes at `file_offset` where the original has `old`.
    """

    layers: tuple[str, ...]
    file_offset: int
    old: bytes
    new_size: int


class Undo(NamedTuple):
    """What an edits file says: the SHA-256 of two files, in hex, and how the second was made of the first.

    The edits are those of the ELF file. Where that is inside of a container the digests are of the containers, and
    `outer` is the way back.
    """

    original_sha256: str
    patched_sha256: str
    edits: tuple[Edit, ...]
    outer: OuterChange | None = None


class Proof(NamedTuple):
    """What the verifier established about an original and a patched file.

    Counts are of changed places: `sites` by their form in the patched file, `trampolines`, `keys`
    (slots, whether in place or by relocation), `records` of the table that became copies of another one. `compared`
    is the number of bytes compared. `remarks` are what else was accepted, a sentence each.
    """

    compared: int
    sites: dict[str, int]
    trampolines: int
    keys: int
    changed_keys: tuple[str, ...]
    records: int = 0
    remarks: tuple[str, ...] = ()

    def __repr__(self) -> str:
        # A kernel has thousands of names, which nobody reads in a notebook.
        values = self._asdict() | {"changed_keys": f"<{len(self.changed_keys):,} names>"}
        return f"Proof({', '.join(f'{name}={value}' for name, value in values.items())})"
