"""`staticcall verify` of two objects: which of the proofs it is for, and what it came to."""

from staticcall.errors import InputError, VerificationError
from staticcall.model.change import Proof
from staticcall.verify.objects import elf
from staticcall.verify.objects.annotation import prove_annotation
from staticcall.verify.objects.grown import is_signed, without_signature
from staticcall.verify.objects.retarget import prove_retarget
from staticcall.verify.objects.signature import check_form

_NEW_SIGNATURE = "its signature is a new one, which is for the holder of the certificate to check"


def prove_object(original: bytes, patched: bytes) -> Proof:
    """Prove that an object is another one annotated, or retargeted, and nothing else.

    Both are whole files; two that are the same are a proof that nothing changed. A new table is no changed site.
    A signature that is gone was dropped, another one was made anew. Raises as `prove_annotation` and `prove_retarget`
    do.
    """
    if is_signed(patched):
        try:
            core = without_signature(patched)
        except InputError as error:
            raise VerificationError(error.what, offset=error.offset) from error
        if original[len(without_signature(original)) :] != patched[len(core) :]:
            check_form(patched)
            proof = prove_object(original, core)
            return proof._replace(compared=len(patched), remarks=(*proof.remarks, _NEW_SIGNATURE))
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
