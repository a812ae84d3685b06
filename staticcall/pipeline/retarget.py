"""plan -> relocate -> write -> verify for relocatable objects, whose relocations are what is patched."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from staticcall.errors import StaticcallError, UnsafeError, about
from staticcall.model.change import Plan, Proof
from staticcall.model.image import Image
from staticcall.pipeline.batch import document_of
from staticcall.pipeline.look import Look
from staticcall.plan.relocate import layout_edits, relocate
from staticcall.read.source import sha256_of_bytes
from staticcall.report.json import render_edits
from staticcall.write.object import rewrite_object
from staticcall.write.stage import stage_text
from staticcall.write.whole import stage_whole


def refuse_signed(image: Image, *, strip_signature: bool) -> None:
    """Raise `UnsafeError` for a signed module whose signature nobody gave up."""
    if image.placement is not None and image.placement.file.signed and not strip_signature:
        raise UnsafeError(
            "is signed, and its signature would not hold for a patched module",
            code="module-signature",
            advice="--strip-signature to drop it; sign the result again where the kernel insists",
        )


def rewritten(image: Image, plan: Plan, *, strip_signature: bool) -> tuple[Plan, bytes]:
    """The object with a plan's changes, and the plan with the edits that make it of the original.

    Raises `UnsafeError` for a target that no relocation can name.
    """
    assert image.placement is not None, "only objects have relocations to edit"
    file = image.placement.file
    rewrite, changes = relocate(image, plan, strip_signature=strip_signature and file.signed)
    # Every place has its bytes and its relocation, and every relocation a symbol.
    result = bytes(rewrite_object(file, rewrite))
    everything = sorted((*changes, *layout_edits(file.data, result, file.end)), key=lambda edit: edit.file_offset)
    return plan._replace(edits=tuple(everything)), result


def retarget_object(
    path: Path,
    image: Image,
    plan: Plan,
    look: Look,
    *,
    output: Path,
    edits: Path | None,
    report: Path | None,
    strip_signature: bool,
) -> tuple[Plan, Proof]:
    """Write an object with a plan's changes to `output`, proved before it appears; gives the plan of its bytes.

    Raises as `patch_image` does.
    """
    from staticcall.verify.objects.read_back import reads_back  # noqa: PLC0415 - only where something is written
    from staticcall.verify.objects.retarget import prove_retarget  # noqa: PLC0415 - the same

    assert image.placement is not None, "only objects have relocations to edit"
    file = image.placement.file
    plan, result = rewritten(image, plan, strip_signature=strip_signature)
    with about(path):
        proof = prove_retarget(file.data, result, plan.edits, stripped_signature=strip_signature and file.signed)
    # Another reader found the plan, the whole plan and nothing but the plan.
    with stage_whole(path, output, result) as (temporary, publish), ExitStack() as texts:
        staged = Path(temporary)
        try:
            reads_back(staged)
        except StaticcallError as error:
            error.path = path  # the temporary file will be gone
            raise
        ready = []
        if edits is not None:
            undo = render_edits(plan, sha256_of_bytes(file.data), sha256_of_bytes(result))
            ready.append(texts.enter_context(stage_text(edits, undo)))
        if report is not None:
            document = document_of(staged, look._replace(keys=None), name=output)
            ready.append(texts.enter_context(stage_text(report, document)))
        # The undo file comes first: never a patched file without the way back.
        for one in ready:
            one()
        publish()
    return plan, proof
