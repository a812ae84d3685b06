"""plan -> relocate -> write -> verify for relocatable objects, whose relocations are what is patched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from staticcall.errors import StaticcallError
from staticcall.model.change import Edit, EditKind, Plan, Proof
from staticcall.model.image import Image
from staticcall.model.object import ObjectFile
from staticcall.pipeline.seal import Seal
from staticcall.plan.build_id import new_build_id, sha1_of_bytes
from staticcall.plan.relocate import layout_edits, relocate
from staticcall.write.object import rewrite_object


class Rewritten(NamedTuple):
    """An object with a plan's changes: the plan with the edits that make the new bytes of the old, and those bytes.

    A signature is not among them, and there is no proof where that was not asked for.
    """

    plan: Plan
    before: bytes
    after: bytes
    proof: Proof | None


def retarget_object(image: Image, plan: Plan, seal: Seal, *, proved: bool) -> Rewritten:
    """Rewrite an object as planned, and prove that. Raises as `patch_image` does."""
    assert image.placement is not None, "only objects have relocations to edit"
    file = image.placement.file
    stripped = seal.drops_signature and file.signed
    rewrite, changes = relocate(image, plan, strip_signature=stripped)
    # Every place has its bytes and its relocation, and every relocation a symbol.
    result = rewrite_object(file, rewrite)

    def digest(more: Sequence[Edit]) -> bytes:
        return sha1_of_bytes(result, more)

    # Sections that are no tables stay where they are, and so do notes.
    build_ids = new_build_id(image, seal.build_id, digest)
    for edit in build_ids:
        result[edit.file_offset : edit.file_offset + len(edit.new)] = edit.new
    after = bytes(result)
    everything = _with_layout(file, (*changes, *build_ids), after)
    plan = plan._replace(edits=everything)
    if not proved:
        return Rewritten(plan, file.data, after, None)
    from staticcall.verify.objects.retarget import prove_retarget  # noqa: PLC0415 - only where something is written

    proof = prove_retarget(file.data, after, plan.edits, stripped_signature=stripped)
    # Another reader found the plan, the whole plan and nothing but the plan.
    return Rewritten(plan, file.data, after, proof)


def with_signature(image: Image, rewritten: Rewritten, signed: bytes) -> Rewritten:
    """The same with the signed module, whose signature the last edit brings."""
    assert image.placement is not None, "only objects have relocations to edit"
    if signed == rewritten.after:
        return rewritten
    own = [edit for edit in rewritten.plan.edits if edit.kind is not EditKind.LAYOUT]
    edits = _with_layout(image.placement.file, own, signed)
    return rewritten._replace(plan=rewritten.plan._replace(edits=edits), after=signed)


def _with_layout(file: ObjectFile, edits: Sequence[Edit], after: bytes) -> tuple[Edit, ...]:
    everything = (*edits, *layout_edits(file.data, after, file.end))
    return tuple(sorted(everything, key=lambda edit: edit.file_offset))


def read_back(staged: Path, named: Path) -> None:
    """See that a library that shares nothing with any of this reads the same relocations in a staged object."""
    from staticcall.verify.objects.read_back import reads_back  # noqa: PLC0415 - only where something is written

    try:
        reads_back(staged)
    except StaticcallError as error:
        error.path = named  # the temporary file will be gone
        raise
