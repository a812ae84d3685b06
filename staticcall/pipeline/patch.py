"""read -> locate -> classify -> plan -> write -> verify, in this order, and only then a file appears."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from staticcall.errors import OutputError, StaticcallError, UnsupportedError, printable
from staticcall.locate.linked import locate
from staticcall.model.change import Plan, Proof
from staticcall.model.image import Image
from staticcall.pipeline.batch import document_of
from staticcall.pipeline.evidence import NO_AIDS, Aids, evidence_of
from staticcall.pipeline.look import Look, archive_at, judge_for
from staticcall.pipeline.outputs import Original, Outputs, stage_texts
from staticcall.pipeline.retarget import refuse_signed, retarget_object
from staticcall.plan.planner import make_plan, require_wish
from staticcall.plan.safety import FORCEABLE
from staticcall.plan.types import FORCE_TYPE
from staticcall.plan.wishes import Wishes
from staticcall.read.image import open_original
from staticcall.read.source import read_whole, sha256_of
from staticcall.report.text import render_plan, render_proof
from staticcall.write.files import followed, refuse_collisions, refuse_input_as_output
from staticcall.write.stage import stage
from staticcall.write.together import publish_together

__all__ = [
    "FORCEABLE",
    "FORCE_TYPE",
    "Aids",
    "Outputs",
    "Patched",
    "Wishes",
    "describe",
    "output_of",
    "patch_image",
    "read_whole",
]


class Patched(NamedTuple):
    """What a patch did: the plan, and the proof of the output unless there was none."""

    plan: Plan
    proof: Proof | None


def patch_image(
    path: Path, look: Look, wishes: Wishes, outputs: Outputs, *, aids: Aids = NO_AIDS, strip_signature: bool = False
) -> Patched:
    """Rewrite one file, or only plan it where there is no output.

    The output may be `path` itself, which is then replaced. A module's signature is only dropped with
    `strip_signature`. Nothing appears under any of the three names unless the proof of the whole file held. Raises
    `UnsafeError` for what would crash later, `VerificationError` when the proof fails.
    """
    require_wish(wishes)
    if archive_at(path):
        raise UnsupportedError("is an archive", path=path, advice="extract the member, patch it, and put it back")
    with open_original(path) as (image, check_unchanged), _blaming_changes(check_unchanged):
        refuse_signed(image, strip_signature=strip_signature)
        original = Original(path, image, check_unchanged)
        if image.placement is not None:
            plan, _ = _plan(image, look, wishes, aids)
            done = Patched(*retarget_object(original, plan, look, outputs, strip_signature=strip_signature))
        elif outputs.output is not None:
            done = _patch_linked(original, look, wishes, outputs, outputs.output, aids)
        else:
            done = Patched(_plan(image, look, wishes, aids)[0], None)
        if outputs.output is None:
            check_unchanged()
        return done


@contextmanager
def _blaming_changes(check_unchanged: Callable[[], None]) -> Iterator[None]:
    """Where a file makes no sense because it was changed while it was read, say that."""
    try:
        yield
    except OutputError:
        raise
    except StaticcallError:
        check_unchanged()
        raise


def _patch_linked(
    original: Original, look: Look, wishes: Wishes, outputs: Outputs, output: Path, aids: Aids
) -> Patched:
    from staticcall.verify.proof import prove  # noqa: PLC0415 - a plan alone needs neither decoder nor reader

    path = original.path

    def document() -> list[str]:
        staged.flush()  # on a server a file may change its times while it goes to the disk
        with _named_instead_of(output, path):
            return document_of(staged.path, look._replace(keys=None), output, plan.edits)

    with stage(path, output) as staged:
        # While the file is being copied there is time to think.
        plan, table = _plan(original.image, look, wishes, aids)
        # The edits are sorted and disjoint, and each carries the bytes that it replaces.
        staged.apply(plan.edits)
        # The staged file is complete, has a temporary name, and is on its way to the disk.
        with _named_instead_of(staged.path, path):
            proof = prove(path, staged.path, plan.edits, table=table, allowed=wishes.forced)
        # Another reader and another decoder found the plan, the whole plan and nothing but the plan.
        with ExitStack() as texts:
            ready = stage_texts(texts, outputs, plan, lambda: (sha256_of(path), sha256_of(staged.path)), document)
            staged.flush()
            # All is on the disk and only lacks its name. The undo file comes first: never a patched file
            # without the way back.
            publish_together(output, ready, staged.publish, original.check_unchanged)
    return Patched(plan, proof)


def _plan(image: Image, look: Look, wishes: Wishes, aids: Aids) -> tuple[Plan, tuple[int, int] | None]:
    """The plan, and where the table is if the user had to say so."""
    located = locate(image, table=look.table)
    plan = make_plan(image, located, wishes, judge_for(located, look.policy), evidence_of(image, aids))
    return plan, (located.table.start, located.table.stop) if look.table and located.table else None


def describe(patched: Patched, *, verbose: bool = False) -> str:
    """What was done, in lines for a person."""
    lines = [*render_plan(patched.plan, verbose=verbose), *(render_proof(patched.proof) if patched.proof else ())]
    return "".join(printable(line.rstrip("\n")) + "\n" for line in lines)


@contextmanager
def _named_instead_of(temporary: Path, path: Path) -> Iterator[None]:
    """Let errors about a file that will be gone name the one that it was made of."""
    try:
        yield
    except StaticcallError as error:
        if error.path == temporary:
            error.path = path
        error.advice = error.advice or "nothing was published"
        raise


def output_of(path: Path, output: Path | None, *, in_place: bool, others: tuple[Path | None, ...] = ()) -> Path:
    """Where the result goes; raises `UsageError` where it would replace the input, or one of `others`, unasked."""
    target = Path(followed(path)) if in_place or output is None else output
    if not in_place:
        refuse_input_as_output(path, target)
        refuse_collisions((path, *others))
    refuse_collisions((target, *others))
    return target
