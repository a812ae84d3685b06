"""read -> locate -> classify -> plan -> write -> verify, in this order, and only then a file appears."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from staticcall.errors import InputError, OutputError, StaticcallError, about, inside_of, printable
from staticcall.locate.hints import hints_of
from staticcall.locate.linked import locate
from staticcall.model.change import EditKind, Plan, Proof, Undo
from staticcall.model.hints import Hints
from staticcall.pipeline import trace
from staticcall.pipeline.batch import document_of
from staticcall.pipeline.evidence import evidence_of
from staticcall.pipeline.look import Look, judge_for, refuse_archive
from staticcall.pipeline.outputs import Original, Outputs, publish_whole, stage_texts
from staticcall.pipeline.retarget import read_back, retarget_object, with_signature
from staticcall.pipeline.seal import NO_SEAL, Seal, check_seal, sign_module, with_build_id
from staticcall.pipeline.wrapped import (
    Around,
    around_of,
    prove_wrapped,
    refuse_archive_as_output,
    refuse_signed_image,
    undo_of,
    wrap,
)
from staticcall.plan.planner import make_plan, require_wish
from staticcall.plan.safety import FORCEABLE
from staticcall.plan.types import FORCE_TYPE
from staticcall.plan.wishes import Wishes
from staticcall.read.image import open_original
from staticcall.read.inputs import split_member
from staticcall.read.source import read_whole, sha256_of
from staticcall.report.text import render_plan, render_proof
from staticcall.write.files import followed, refuse_collisions, refuse_input_as_output
from staticcall.write.private import private_folder, put
from staticcall.write.stage import stage
from staticcall.write.together import publish_together

__all__ = [
    "FORCEABLE",
    "FORCE_TYPE",
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
    path: Path, look: Look, wishes: Wishes, outputs: Outputs, seal: Seal = NO_SEAL, expected: Plan | None = None
) -> Patched:
    """Rewrite one file, or only plan it where there is no output.

    The output may be `path` itself, which is then replaced. A file that was inside of others comes out inside of the
    same, but for an archive: its member becomes a file of its own. `seal` says what becomes of a signature and of the
    build id; `expected` is the plan that somebody has seen before. Nothing appears under any of the three names unless
    the proof of the whole file held. Raises `UnsafeError` for what would crash later, `VerificationError` when the
    proof fails, `InputError` when the plan is not the one expected.
    """
    require_wish(wishes)
    refuse_archive(path)
    with open_original(path, aids=look.aids.names) as (image, check_unchanged), _blaming_changes(check_unchanged):
        trace.opened(image)
        around = around_of(path, image.layers)
        refuse_archive_as_output(around, path, outputs)
        check_seal(image, around.layers, seal)
        with about(path):
            refuse_signed_image(around, seal)
        original = Original(path, image, check_unchanged, around.file)
        task = _Task(original, look, wishes, outputs, seal, around, expected)
        if image.placement is not None:
            done = _patch_object(task)
        elif around.layers or around.named:
            done = _patch_inside(task)
        else:
            done = _patch_linked(task)
        if outputs.output is None:
            check_unchanged()
        return done


class _Task(NamedTuple):
    """One file on its way through the rooms."""

    original: Original
    look: Look
    wishes: Wishes
    outputs: Outputs
    seal: Seal
    around: Around
    expected: Plan | None = None

    def check(self, plan: Plan) -> Plan:
        """The plan, if it is the one that is expected; raises `InputError`."""
        if self.expected is not None and plan != self.expected:
            raise InputError(
                "is not what it was when it was planned", path=self.original.path, advice="plan again, and look again"
            )
        return plan


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


def _patch_linked(task: _Task) -> Patched:
    """A linked file that nothing is around: it may be large, so it stays on the disk."""
    original, look, outputs = task.original, task.look, task.outputs
    path, output = original.path, outputs.output
    if output is None:
        return Patched(_plan(task)[0], None)

    def document() -> list[str]:
        staged.flush()  # on a server a file may change its times while it goes to the disk
        with _named_instead_of(path, output):
            return document_of(staged.path, look._replace(keys=None), output, plan.edits, outputs.form)

    with stage(path, output) as staged:
        # While the file is being copied there is time to think.
        plan, hints = _plan(task)
        # The edits are sorted and disjoint, and each carries the bytes that it replaces.
        trace.doing("copying")
        staged.apply(plan.edits)
        trace.done(path, "staged as {}", staged.path)
        # The staged file is complete, has a temporary name, and is on its way to the disk.
        with _named_instead_of(path, staged.path):
            proof = _proved(task, plan, hints, path, staged.path)
        # Another reader and another decoder found the plan, the whole plan and nothing but the plan.
        with ExitStack() as texts:
            ready = stage_texts(
                texts, outputs, lambda: Undo(sha256_of(path), sha256_of(staged.path), plan.edits), document
            )
            staged.flush()
            # All is on the disk and only lacks its name. The undo file comes first: never a patched file
            # without the way back.
            publish_together(output, ready, staged.publish, original.check_unchanged)
    trace.done(path, "published as {}", output)
    return Patched(plan, proof)


def _patch_inside(task: _Task) -> Patched:
    """A linked file that something is around: the verifier gets both versions of it as files of their own."""
    path, image = task.original.path, task.original.image
    with about(path), inside_of(image.layers):
        plan, hints = _plan(task)
        if task.outputs.output is None:
            return Patched(plan, None)
        before = image.source.whole()
        after = _edited(before, plan)
        with private_folder() as folder:
            files = put(folder / "original", before), put(folder / "patched", after)
            with _named_instead_of(path, *files):
                proof = _proved(task, plan, hints, *files)
    _publish(task, plan, before, after, lambda _: None)
    return Patched(plan, proof)


def _edited(data: bytes, plan: Plan) -> bytes:
    result = bytearray(data)
    for edit in plan.edits:
        result[edit.file_offset : edit.file_offset + len(edit.new)] = edit.new
    return bytes(result)


def _patch_object(task: _Task) -> Patched:
    path, image = task.original.path, task.original.image
    with about(path), inside_of(image.layers):
        rewritten = retarget_object(image, _plan(task)[0], task.seal, proved=task.outputs.output is not None)
        task.check(rewritten.plan)
        if task.outputs.output is None:
            return Patched(rewritten.plan, None)
        if rewritten.proof is not None:
            trace.proved(path, rewritten.proof)
        rewritten = with_signature(image, rewritten, sign_module(rewritten.after, task.seal))

    def check(staged: Path) -> None:
        if not task.around.layers:
            read_back(staged, path)

    _publish(task, rewritten.plan, rewritten.before, rewritten.after, check)
    return Patched(rewritten.plan, rewritten.proof)


def _publish(task: _Task, plan: Plan, before: bytes, after: bytes, check: Callable[[Path], None]) -> None:
    """Wrap what was proved, prove that as well, and give it its name."""
    output, around = task.outputs.output, task.around
    assert output is not None, "a dry run publishes nothing"
    with about(task.original.path):
        made = wrap(after, around, task.seal)
        trace.doing("reading back what was packed")
        prove_wrapped(made, around)
        trace.done(
            task.original.path,
            "packed{}, and read back",
            "".join(f" in {layer.label}" for layer in around.layers[::-1]),
        )
    trace.doing("publishing")
    # What a library finds inside is what was proved, to the last byte.

    def document(staged: Path) -> list[str]:
        with _named_instead_of(output, staged):
            return document_of(staged, task.look._replace(keys=None), output, plan.edits, task.outputs.form)

    publish_whole(
        task.original,
        task.outputs,
        made[0],
        lambda: undo_of(around, before, made, plan.edits),
        document,
        check,
    )
    trace.done(task.original.path, "published as {}", output)


def _plan(task: _Task) -> tuple[Plan, Hints]:
    """The plan, and what the proof cannot read in the file."""
    image, look = task.original.image, task.look
    trace.doing("planning")
    located = locate(image, table=look.table)
    trace.located(image, located)
    plan = make_plan(image, located, task.wishes, judge_for(located, look.policy), evidence_of(image, look.aids))
    if image.placement is None:
        plan = task.check(with_build_id(image, plan, task.seal))
    trace.planned(image.path, plan)
    hints = hints_of(image, located)
    if look.table and located.table:
        hints = hints._replace(table=(located.table.start, located.table.stop))
    return plan, hints


def _proved(task: _Task, plan: Plan, hints: Hints, original: Path, patched: Path) -> Proof:
    from staticcall.verify.proof import prove  # noqa: PLC0415 - a plan alone needs neither decoder nor reader

    table = hints.table if task.look.table else None  # where the user says, whatever the file does
    trace.doing("proving")
    proof = prove(original, patched, plan.edits, table=table, hints=hints, allowed=task.wishes.forced)
    trace.proved(task.original.path, proof)
    return proof


def describe(patched: Patched, *, verbose: bool = False) -> str:
    """What was done, in lines for a person."""
    lines = [*render_plan(patched.plan, verbose=verbose), *_proved_lines(patched)]
    return "".join(printable(line.rstrip("\n")) + "\n" for line in lines)


def _proved_lines(patched: Patched) -> Iterator[str]:
    """The proof; without one, what it would have had to say beside the calls."""
    if patched.proof is not None:
        yield from render_proof(patched.proof)
        return
    ids = {(edit.old, edit.new) for edit in patched.plan.edits if edit.kind is EditKind.BUILD_ID}
    yield from (f"  the build id is {old.hex()} and becomes {new.hex()}" for old, new in sorted(ids))


@contextmanager
def _named_instead_of(path: Path, *temporary: Path) -> Iterator[None]:
    """Let errors about files that will be gone name the one that they were made of."""
    try:
        yield
    except StaticcallError as error:
        if error.path in temporary:
            error.path = path
        error.advice = error.advice or "nothing was published"
        raise


def output_of(
    path: Path,
    output: Path | None,
    *,
    in_place: bool,
    others: tuple[Path | None, ...] = (),
    inputs: tuple[Path | None, ...] = (),
) -> Path:
    """Where the result goes; raises `UsageError` where it would replace the input, or one of `others`, unasked.

    `others` are the other outputs; none of them replaces one of `inputs`, of which a member stands for its archive.
    """
    target = Path(followed(path)) if in_place or output is None else output
    if not in_place:
        refuse_input_as_output(path, target)
        refuse_collisions((path, *others))
    refuse_collisions((target, *others))
    for name in (split_member(name)[0] for name in inputs if name is not None):
        for written in (target, *others):
            refuse_collisions((name, written))
    return target
