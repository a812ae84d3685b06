"""The catalogue of findings and reasons, held against the source: what is raised is in it, and nothing else."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import staticcall
from staticcall.locate import claims
from staticcall.model.claims import NAMING_ONLY
from staticcall.model.findings import FINDINGS, IN_MEMORY
from staticcall.model.reasons import DIRECT_REASONS, REASONS, REMEDIES

ROOT = Path(staticcall.__file__).parent
SENTENCES = {**FINDINGS, **IN_MEMORY}


@cache
def source() -> tuple[tuple[str, ast.Call], ...]:
    """Every call in the modules that make findings or verdicts, with the module that it is in."""
    texts = ((path, path.read_text()) for path in sorted(ROOT.rglob("*.py")))
    return tuple(
        (str(path.relative_to(ROOT)), node)
        for path, text in texts
        if any(f"{name}(" in text for name in ("Finding", "_finding", "Verdict", "_otherwise"))
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call)
    )


def calls_of(name: str) -> Iterator[tuple[str, ast.Call]]:
    """The calls of a function of this name."""
    for module, node in source():
        if isinstance(node.func, ast.Name) and node.func.id == name:
            yield module, node


def severities_in(node: ast.expr) -> set[str]:
    """The severities that an expression names."""
    return {
        one.attr.lower()
        for one in ast.walk(node)
        if isinstance(one, ast.Attribute) and isinstance(one.value, ast.Name) and one.value.id == "Severity"
    }


def raised() -> tuple[dict[str, set[str]], set[str]]:
    """The severities of each code that is written where a finding is made, and the modules with other codes."""
    codes: dict[str, set[str]] = defaultdict(set)
    indirect = set()
    for module, call in calls_of("Finding"):
        code, severity, *_ = call.args
        if isinstance(code, ast.Constant):
            assert isinstance(code.value, str)
            codes[code.value] |= severities_in(severity)
        else:
            indirect.add(module)
    return codes, indirect


def test_the_catalogue_has_every_finding_that_is_raised_with_its_severities() -> None:
    codes, indirect = raised()
    # Two modules make findings of several codes in one place.
    assert indirect == {"locate/claims.py", "pipeline/integrity.py"}
    for owner, (code, _) in claims._FINDINGS.items():
        codes[code].add("note" if owner in NAMING_ONLY else "warning")

    assert {code: {one.value for one in kind.severities} for code, kind in FINDINGS.items()} == codes


def test_the_catalogue_has_every_finding_about_memory() -> None:
    made = {}
    for module, call in calls_of("_finding"):
        if module == "pipeline/integrity.py":
            _, _, code, severity = call.args
            assert isinstance(code, ast.Constant)
            made[code.value] = severities_in(severity)

    assert {code: {one.value for one in kind.severities} for code, kind in IN_MEMORY.items()} == made


@pytest.mark.parametrize("code", sorted(SENTENCES))
def test_a_finding_is_told_in_sentences(code: str) -> None:
    severities, meaning, advice = SENTENCES[code]

    assert list(severities) == sorted(severities, key=["error", "warning", "note"].index)
    assert all(text[0].isupper() or text.startswith("patch") for text in (meaning, advice))
    assert all(text.endswith(".") and "\n" not in text and "  " not in text for text in (meaning, advice))


def test_no_code_means_two_things() -> None:
    assert not FINDINGS.keys() & REASONS.keys()
    assert not FINDINGS.keys() & IN_MEMORY.keys()


def test_a_reason_goes_direct_or_has_a_remedy() -> None:
    """Which reasons go direct is read off the classifier's source."""
    direct = {"pinned"}  # which the pipeline knows from the edits
    for _, call in calls_of("_otherwise"):
        (reason,) = call.args
        assert isinstance(reason, ast.Constant)
        assert isinstance(reason.value, str)
        direct.add(reason.value)
    for module, call in calls_of("Verdict"):
        if module == "classify/ladders.py" and isinstance(call.args[0], ast.Name) and call.args[0].id == "_DIRECT":
            reason = call.args[1]
            if isinstance(reason, ast.Constant) and isinstance(reason.value, str):
                direct.add(reason.value)

    assert direct == DIRECT_REASONS
    assert REMEDIES.keys() == REASONS.keys() - DIRECT_REASONS
