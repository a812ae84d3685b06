"""The proof alone, for a pair of files that somebody else may have made."""

from __future__ import annotations

from pathlib import Path

from staticcall.model.change import Proof
from staticcall.report.text import render_proof
from staticcall.verify.proof import prove
from staticcall.verify.second_reader import same_layout


def check_pair(
    original: Path,
    patched: Path,
    *,
    deep: bool = False,
    table: tuple[int, int] | None = None,
    allowed: frozenset[str] = frozenset(),
) -> Proof:
    """Prove that `patched` is `original` plus legal edits; with `deep` a third reader compares the layouts.

    `table` gives the linked start and end address of the records where the file does not say; `allowed` are
    dangers that somebody answers for. Raises `VerificationError` with the first thing that does not hold.
    """
    proof = prove(original, patched, table=table, allowed=allowed)
    if deep:
        same_layout(original, patched)
    return proof


def describe(proof: Proof, *, verbose: bool = False) -> str:
    """What was proved, in lines for a person; with `verbose` the name of every key that changed."""
    return "".join([*render_proof(proof), *(f"  {name}\n" for name in proof.changed_keys if verbose)])
