"""Pinned sites: their records are replaced, so that nobody leads them elsewhere again.

A table keeps its length, so in the place of a pinned site's record stands a copy of another one, the donor. The kernel
sorts its records by key and patches site by site: one that it comes to twice has its bytes already the second time, and
is left alone (kernel/static_call_inline.c, __static_call_init() and __static_call_update(); the comparison is in
arch/x86/kernel/static_call.c, __static_call_transform()). A key that has lost all its records is one without sites, as
a key that only modules use.
"""

import struct
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from staticcall.abi import elf64, static_call
from staticcall.errors import UnsafeError
from staticcall.model.change import Edit, EditKind
from staticcall.model.form import Form
from staticcall.model.image import Image
from staticcall.model.sites import Answer, Dialect, Key, Located, Site, Target, TargetKind
from staticcall.plan.code import site_code
from staticcall.plan.safety import INIT_SECTIONS, contested_records, refuse_damaged, replaceable
from staticcall.plan.transaction import Judged

# What a donor's instruction is, by its record's TAIL flag: what every kernel accepts, as the runtime does.
_DONORS: Final = {
    False: frozenset({Form.CALL, Form.NOP, Form.RET0}),
    True: frozenset({Form.TAIL_JMP, Form.JCC}),
}
_SHORTEST: Final = 5  # the bytes of a branch with a displacement of four; a jcc has one more


class Pin(NamedTuple):
    """A site that is to stay where its key leads now."""

    key: Key
    site: Site


def refuse_unpinnable(image: Image, located: Located, key: Key, judged: Sequence[Judged]) -> None:
    """Raise `UnsafeError` for a key of which the file does not say for certain where it leads."""
    refuse_damaged(located, key, (site for site, verdict in judged if verdict.answer is Answer.DIRECT))
    if key.slot.elsewhere or replaceable(image, (key,)):
        raise UnsafeError(
            f"key {key.name} is defined in another file, or may be, which says where it leads",
            code="key-elsewhere",
            advice="patch the file that defines it, or the two linked together",
        )
    if located.kind_of(key) is TargetKind.RUNTIME:
        raise UnsafeError(
            f"key {key.name} gets its target {key.slot.symbol} from the dynamic linker, so no site can be pinned to it",
            code="slot-resolved-at-run-time",
            advice="give the target hidden visibility or -Bsymbolic and link again",
        )
    if any(finding.code == "incoherent-key" and finding.address == key.address for finding in located.findings):
        raise UnsafeError(
            f"key {key.name} leads to {located.target_of(key).name} and its trampoline elsewhere, so it is unclear what"
            " to pin",
            code="incoherent-key",
            advice=f"say which with --set {key.name}=...",
        )


def pins_of(located: Located, key: Key, judged: Iterable[Judged], target: Target) -> list[Pin]:
    """The direct sites whose bytes lead to the target by themselves.

    Others lead to the trampoline even where they are patched: how a tail site of a NULL key returns may be decided at
    boot.
    """
    home = key.trampoline.address if key.trampoline else 0
    return [
        Pin(key, site)
        for site, verdict in judged
        if verdict.answer is Answer.DIRECT and site_code(located, site, key, target).destination != home
    ]


def count(pins: Iterable[Pin]) -> int:
    """How many sites are pinned; one may have had several records."""
    return len({pin.site.address for pin in pins})


def places(pins: Iterable[Pin]) -> list[Edit]:
    """The instructions that are to stay as they are, as edits that change nothing."""
    return [Edit(site.file_offset, site.code, site.code, EditKind.SITE, key.name, site.address) for key, site in pins]


def pin_edits(image: Image, located: Located, pins: Sequence[Pin]) -> list[Edit]:
    """Edits that put a copy of a donor's record in the place of every record of the pinned sites.

    In an edit `destination` is the linked address of the donor's record. Raises `UnsafeError` where no record is left
    to repeat, or where a linker may take another site instead.
    """
    if not pins:
        return []
    assert located.table is not None, "pinned sites have records"
    start = located.table.start
    leaving = {pin.site.address for pin in pins}
    donors = _Donors(image, start, _candidates(located, contested_records(located.sites).keys() | leaving))
    edits = []
    for key, site in pins:
        _refuse_grouped(image, site)
        assert site.record is not None, "only recorded sites are judged"
        own = start + site.record * static_call.RECORD_SIZE
        edits.append(_copy(image, key, own, donors.nearest(own, key)))
    return edits


def _refuse_grouped(image: Image, site: Site) -> None:
    section = image.section_at(site.address) if image.placement is not None else None
    if section is not None and section.flags & elf64.SHF_GROUP:
        raise UnsafeError(
            f"the {site.instruction.form} at {site.where} is in a section group, so a linker may take another object's,"
            " which is not pinned",
            code="site-elsewhere",
            advice="pin in the linked file",
        )


def _candidates(located: Located, others: Iterable[int]) -> list[Site]:
    """The sites whose records stay and are right, in order of the records."""
    excluded = set(others)
    found = [
        site
        for site in located.sites
        if site.record is not None
        and site.address not in excluded
        and not site.section.startswith(INIT_SECTIONS)
        and (key := located.key_of(site)) is not None
        and not located.by_another(key, site)
        and _is_sound(located.dialect, site)
    ]
    found.sort(key=_record_of)
    return found


def _record_of(site: Site) -> int:
    return site.record or 0


def _is_sound(dialect: Dialect, site: Site) -> bool:
    """Whether the kernel takes the bytes at a site for its own, as the record says."""
    form, length, opcode, _, _ = site.instruction
    if (form is Form.RET0 and site.code != dialect.ret0) or (form is Form.NOP and site.code != dialect.nop):
        return False
    whole = length == _SHORTEST + (form is Form.JCC)
    return form in _DONORS[site.tail] and whole and not opcode


class _Donors:
    """Finds the record to repeat: one of the same key if there is any, so that no other key has more to update.

    In an object the two must be in the same section: a linker may throw away another one.
    """

    def __init__(self, image: Image, start: int, candidates: Iterable[Site]) -> None:
        self._image = image
        self._of_key: dict[tuple[int, int | None], int] = {}
        self._of_any: dict[int, int] = {}
        for site in candidates:
            address = start + _record_of(site) * static_call.RECORD_SIZE
            home = self._home(address)
            self._of_key.setdefault((home, site.key), address)
            self._of_any.setdefault(home, address)

    def nearest(self, own: int, key: Key) -> int:
        """The linked address of the donor's record, for that of the record to replace."""
        home = self._home(own)
        found = self._of_key.get((home, key.address), self._of_any.get(home))
        if found is None:
            raise UnsafeError(
                f"no record of the table would be left to stand in for those of key {key.name}",
                code="no-donor",
                advice="leave one of the keys unpinned, or give a policy that leaves a site to its trampoline"
                + (", or pin in the linked file" if self._image.placement is not None else ""),
            )
        return found

    def _home(self, address: int) -> int:
        if self._image.placement is None:
            return 0
        section = self._image.section_at(address)
        return section.number if section else 0


def _copy(image: Image, key: Key, own: int, donor: int) -> Edit:
    old = image.read_at(own, static_call.RECORD_SIZE)
    to_site, to_key = static_call.RECORD.unpack(image.read_at(donor, static_call.RECORD_SIZE))
    try:
        # Each field is relative to its own address.
        new = static_call.RECORD.pack(to_site + donor - own, to_key + donor - own)
    except struct.error:
        raise UnsafeError(
            f"the record at {image.where(own)} of key {key.name} is more than 2 GiB away from the site of its donor",
            code="out-of-range",
            advice="--table names another place",
        ) from None
    offset = image.offset_of(own)
    assert offset is not None, "the record was read from the file"
    return Edit(offset, old, new, EditKind.RECORD, key.name, own, destination=donor)
