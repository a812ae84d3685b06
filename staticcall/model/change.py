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


class Proof(NamedTuple):
    """What the verifier established about an original and a patched file.

    Counts are of changed places: `sites` by their form in the patched file, `trampolines`, `keys`
    (slots, whether in place or by relocation), `records` of the table that became copies of another one. `compared`
    is the number of bytes compared.
    """

    compared: int
    sites: dict[str, int]
    trampolines: int
    keys: int
    changed_keys: tuple[str, ...]
    records: int = 0
