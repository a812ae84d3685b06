"""The proof alone, for a pair of files that somebody else may have made."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from staticcall.errors import StaticcallError, UsageError, VerificationError, about, inside_of
from staticcall.locate.hints import hints_of, needs_hints
from staticcall.locate.linked import locate
from staticcall.model.change import Proof
from staticcall.model.container import MemberOf
from staticcall.model.hints import NO_HINTS, Hints
from staticcall.pipeline.pair import open_pair
from staticcall.pipeline.trace import doing, done, proved
from staticcall.read.image import open_image
from staticcall.read.inputs import container_at
from staticcall.read.object import is_object
from staticcall.read.source import FileSource, read_whole
from staticcall.report.text import render_proof
from staticcall.verify.proof import prove
from staticcall.verify.second_reader import same_layout

# Enough to see what kind of file it is.
_HEAD = 64


def check_pair(
    original: Path,
    patched: Path,
    *,
    deep: bool = False,
    table: tuple[int, int] | None = None,
    allowed: frozenset[str] = frozenset(),
) -> Proof:
    """Prove that `patched` is `original` plus legal edits; with `deep` a third reader compares the layouts.

    What is inside of containers is compared, and boot images around it too; one of the two may be unpacked already.
    `table` gives the linked start and end address of the records where the file does not say; `allowed` are
    dangers that somebody answers for. Raises `VerificationError` with the first thing that does not hold.
    """
    if _is_archive(original):
        return _prove_archive(original, patched, deep=deep)
    with ExitStack() as stack:
        doing("unpacking")
        pair = open_pair(stack, original, patched)
        done(patched, "opened beside {}", original)
        doing("proving")
        with inside_of(pair.layers), pair.naming():
            if is_object(_head(pair.before)):
                proof = _prove_object(pair.before, pair.after, deep=deep)
            else:
                hints = _hints(pair.before, table)
                proof = prove(pair.before, pair.after, table=table, hints=hints, allowed=allowed)
                if deep:
                    proved(patched, proof)
                    doing("comparing the layouts")
                    same_layout(pair.before, pair.after)
                    done(patched, "same layout by a third reader")
        proved(patched, proof)
    return proof._replace(remarks=(*pair.remarks, *proof.remarks))


def _hints(original: Path, table: tuple[int, int] | None) -> Hints:
    """What the proof has to be told of an image that does not name its places; it checks each hint by itself."""
    with open_image(original) as image:
        if not needs_hints(image):
            return NO_HINTS
        wanted = None if table is None else f"{table[0]:#x}:{table[1]:#x}"
        return hints_of(image, locate(image, table=wanted))


def _is_archive(path: Path) -> bool:
    with about(path):
        return container_at(path) is MemberOf.ARCHIVE


def _head(path: Path) -> bytes:
    with about(path), FileSource(path) as source:
        return source.read(0, min(source.size, _HEAD))


def _prove_object(original: Path, patched: Path, *, deep: bool) -> Proof:
    from staticcall.verify.objects.proof import prove_object  # noqa: PLC0415 - only for objects
    from staticcall.verify.objects.read_back import reads_back  # noqa: PLC0415 - only for objects

    before, after = read_whole(original), read_whole(patched)
    try:
        proof = prove_object(before, after)
    except StaticcallError as error:
        # Whatever is wrong with the second file fails the proof; all else is about the first.
        error.path = error.path or (patched if isinstance(error, VerificationError) else original)
        raise
    if deep:
        reads_back(patched)
    return proof


def _prove_archive(original: Path, patched: Path, *, deep: bool) -> Proof:
    from staticcall.verify.archive import same_archive  # noqa: PLC0415 - only for archives
    from staticcall.verify.objects.proof import prove_object  # noqa: PLC0415 - only for archives

    if deep:
        raise UsageError("--deep is for one object", path=patched, advice="name one of its members, as FILE(MEMBER)")
    before = read_whole(original)
    proof = Proof(len(before), {}, 0, 0, ())
    with about(patched):
        for changed in same_archive(before, read_whole(patched)):
            with about(Path(f"{patched}({changed.name})")):
                proof = _joined(proof, prove_object(changed.before, changed.after))
    return proof


def _joined(one: Proof, other: Proof) -> Proof:
    """The proof of an archive, from those of its members; every byte was compared once."""
    sites = {form: one.sites.get(form, 0) + other.sites.get(form, 0) for form in {*one.sites, *other.sites}}
    keys = tuple(sorted({*one.changed_keys, *other.changed_keys}))
    return Proof(
        one.compared,
        sites,
        one.trampolines + other.trampolines,
        one.keys + other.keys,
        keys,
        one.records + other.records,
    )


def describe(proof: Proof, *, verbose: bool = False) -> str:
    """What was proved, in lines for a person; with `verbose` the name of every key that changed."""
    return "".join([*render_proof(proof), *(f"  {name}\n" for name in proof.changed_keys if verbose)])
