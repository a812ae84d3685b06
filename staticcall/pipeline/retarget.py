"""plan -> relocate -> write -> verify for relocatable objects, whose relocations are what is patched."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from staticcall.errors import StaticcallError, UnsafeError, about
from staticcall.model.change import Plan, Proof
from staticcall.model.image import Image
from staticcall.pipeline.batch import document_of
from staticcall.pipeline.look import Look
from staticcall.pipeline.outputs import Original, Outputs, stage_texts
from staticcall.plan.relocate import layout_edits, relocate
from staticcall.read.source import sha256_of_bytes
from staticcall.write.object import rewrite_object
from staticcall.write.together import publish_together
from staticcall.write.whole import stage_whole


def refuse_signed(image: Image, *, strip_signature: bool) -> None:
    """Raise `UnsafeError` for a signed module whose signature nobody gave up."""
    if image.placement is not None and image.placement.file.signed and not strip_signature:
        raise UnsafeError(
            "is signed, and its signature would not hold for a patched module",
            code="module-signature",
            advice="--strip-signature to drop it; sign the result again where the kernel insists",
        )


def retarget_object(
    original: Original, plan: Plan, look: Look, outputs: Outputs, *, strip_signature: bool
) -> tuple[Plan, Proof | None]:
    """Write an object with a plan's changes, proved before it appears, or without an output only plan that.

    Gives the plan with the edits that make the new bytes of the old. Raises as `patch_image` does.
    """
    path, image = original.path, original.image
    assert image.placement is not None, "only objects have relocations to edit"
    file = image.placement.file
    stripped = strip_signature and file.signed
    rewrite, changes = relocate(image, plan, strip_signature=stripped)
    # Every place has its bytes and its relocation, and every relocation a symbol.
    result = bytes(rewrite_object(file, rewrite))
    everything = sorted((*changes, *layout_edits(file.data, result, file.end)), key=lambda edit: edit.file_offset)
    plan = plan._replace(edits=tuple(everything))
    if outputs.output is None:
        return plan, None
    from staticcall.verify.objects.retarget import prove_retarget  # noqa: PLC0415 - only where something is written

    with about(path):
        proof = prove_retarget(file.data, result, plan.edits, stripped_signature=stripped)
    # Another reader found the plan, the whole plan and nothing but the plan.
    _publish(original, outputs.output, plan, file.data, result, look, outputs)
    return plan, proof


def _publish(
    original: Original, output: Path, plan: Plan, before: bytes, after: bytes, look: Look, outputs: Outputs
) -> None:
    from staticcall.verify.objects.read_back import reads_back  # noqa: PLC0415 - only where something is written

    with stage_whole(original.path, output, after) as (temporary, publish), ExitStack() as texts:
        staged = Path(temporary)
        try:
            reads_back(staged)
        except StaticcallError as error:
            error.path = original.path  # the temporary file will be gone
            raise
        # A library that shares nothing with any of this reads the same relocations.
        ready = stage_texts(
            texts,
            outputs,
            plan,
            lambda: (sha256_of_bytes(before), sha256_of_bytes(after)),
            lambda: document_of(staged, look._replace(keys=None), output, plan.edits),
        )
        # The undo file comes first: never a patched file without the way back.
        publish_together(output, ready, publish, original.check_unchanged)
