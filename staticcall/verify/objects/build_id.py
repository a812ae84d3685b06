"""The build ids of an object, which stand in notes that nothing is relocated in."""

from staticcall.verify.notes import NewId, ids_in, new_ids
from staticcall.verify.objects import elf
from staticcall.verify.objects.elf import Elf

_SHT_NOTE = 7


def read_new_ids(before: Elf, after: Elf) -> tuple[dict[tuple[int, int], NewId], tuple[NewId, ...]]:
    """The build ids that differ, by the section and offset of each of their bytes, and as they are in the file.

    Raises `VerificationError` where copies disagree.
    """
    kinds = (elf.SHT_RELA, elf.SHT_REL)
    relocated = {info for kind, info in zip(before.types, before.infos, strict=True) if kind in kinds}
    pairs = {}
    for section, kind in enumerate(before.types):
        if kind == _SHT_NOTE and before.flags[section] & elf.SHF_ALLOC and section not in relocated:
            old, new = bytes(before.content(section)), bytes(after.content(section))
            for at, size in ids_in(old):
                pair = NewId(after.offsets[section] + at, old[at : at + size], new[at : at + size])
                pairs[section, at] = pair
    changed = new_ids(pairs.values())
    places = {
        (section, at + i): pair
        for (section, at), pair in pairs.items()
        if pair.before != pair.after
        for i in range(len(pair.before))
    }
    return places, changed
