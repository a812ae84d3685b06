"""`staticcall verify` of two objects: which of the proofs it is for, and what it came to."""

from staticcall.errors import InputError, VerificationError
from staticcall.model.change import Proof
from staticcall.verify.objects import elf
from staticcall.verify.objects.annotation import prove_annotation
from staticcall.verify.objects.grown import is_signed
from staticcall.verify.objects.retarget import prove_retarget


def prove_object(original: bytes, patched: bytes) -> Proof:
    """Prove that an object is another one annotated, or retargeted, and nothing else.

    Both are whole files; two that are the same are a proof that nothing changed. A new table is no changed site.
    A signature that is gone was dropped. Raises as `prove_annotation` and `prove_retarget` do.
    """
    before = elf.read(original)
    try:
        table = _new_table(before.section_count, elf.read(patched))
    except InputError as error:
        raise VerificationError(error.what, offset=error.offset) from error
    if table is None:
        return prove_retarget(original, patched, stripped_signature=is_signed(original) and not is_signed(patched))
    # Whether a record may name a trampoline is a question of who made the table; here it only has to be right.
    prove_annotation(original, patched, section=table, module=True)
    return Proof(len(patched), {}, 0, 0, ())


def _new_table(old_count: int, after: elf.Elf) -> str | None:
    """The name of the table that the original did not have."""
    for section in range(old_count, after.section_count):
        if after.types[section] == elf.SHT_PROGBITS:
            return after.name(section).decode(errors="replace")
    return None
