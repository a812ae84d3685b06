"""The proof alone, for a pair of files that somebody else may have made."""

from __future__ import annotations

from pathlib import Path

from staticcall.model.change import Proof
from staticcall.report.text import render_proof
from staticcall.verify import prove
from staticcall.verify.second_reader import same_layout


def check_pair(original: Path, patched: Path, *, deep: bool = False) -> Proof:
    """Prove that `patched` is `original` plus legal edits; with `deep` a third reader compares the layouts.

    Raises `VerificationError` with the first thing that does not hold.
    """
    proof = prove(original, patched)
    if deep:
        same_layout(original, patched)
    return proof


def describe(proof: Proof) -> str:
    """What was proved, in lines for a person."""
    return "".join(render_proof(proof))
