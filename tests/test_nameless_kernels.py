"""Kernels without any names: everything else of their static calls is found, rewritten and proved all the same.

What is expected comes from the same builds with all their symbols, read by `tests/support/vmlinux.py`.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from staticcall.errors import VerificationError
from staticcall.locate.hints import hints_of
from staticcall.locate.linked import locate
from staticcall.model.hints import Hints
from staticcall.read.image import open_image
from staticcall.verify.proof import prove
from tests.support import nameless, tool
from tests.support.tool import Json, Patch, patch, succeed
from tests.support.vmlinux import CALL, JCC, JMP, RETURN0, RETURN_THUNK, XOR, Vmlinux

pytestmark = pytest.mark.kernel

FORMS = {CALL: "call", JMP: "tail_jmp", JCC: "jcc"}


class Nameless(NamedTuple):
    """A kernel as it was built, and the image of its bzImage without names."""

    named: Vmlinux
    path: Path


@pytest.fixture(scope="module")
def bare(kernel: Vmlinux, unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Nameless:
    path = tmp_path_factory.mktemp("nameless") / "vmlinux"
    return Nameless(kernel, nameless.take_names(kernel, unpacked, path))


@pytest.fixture(scope="module", params=["sections", "segments"])
def any_bare(request: pytest.FixtureRequest, bare: Nameless) -> Nameless:
    """Also with no section headers, so that only the segments tell what is where."""
    if request.param == "sections":
        return bare
    return bare._replace(path=nameless.take_sections(bare.path, bare.path.with_name("segments")))


@cache
def report(path: Path, *options: str) -> Json:
    return tool.report(*options, path)


def test_nothing_in_the_image_names_anything(any_bare: Nameless) -> None:
    listed = subprocess.run(["nm", any_bare.path], capture_output=True, text=True, check=False).stdout
    assert listed == ""
    assert report(any_bare.path)["names"]["source"] == "none"


def test_every_site_is_found_with_its_bytes_its_key_and_nothing_else(any_bare: Nameless) -> None:
    keys = any_bare.named.keys
    assert [
        (site["address"], site["record"], site["bytes"], site["form"], site["key"], site["destination"])
        for site in report(any_bare.path)["sites"]
    ] == [
        (
            f"{call.address:#x}",
            call.record,
            call.code.hex(),
            FORMS[call.code[0]],
            f"{keys[call.key].address:#x}",
            f"{call.destination:#x}",
        )
        for call in sorted(any_bare.named.calls, key=lambda call: call.address)
    ]


def test_every_key_is_found_with_its_trampoline_those_without_sites_too(any_bare: Nameless) -> None:
    assert {
        (int(key["address"], 16), int(key["func"] or "0", 16), int(key["trampoline"], 16))
        for key in report(any_bare.path)["keys"]
    } == {(key.address, key.func, key.trampoline) for key in any_bare.named.keys.values()}


def test_there_is_nothing_to_find_fault_with(any_bare: Nameless) -> None:
    assert report(any_bare.path)["findings"] == []


@pytest.mark.parametrize("policy", ["lutomirski", "kernel"])
def test_verdicts_are_those_of_the_policy(policy: str, bare: Nameless) -> None:
    named = tool.report("--policy", policy, bare.named.path)
    verdicts = {site["address"]: (site["verdict"], site["reason"]) for site in named["sites"]}
    image = report(bare.path, "--policy", policy)
    assert {site["address"]: (site["verdict"], site["reason"]) for site in image["sites"]} == verdicts
    assert image["summary"] == named["summary"]


@pytest.fixture(scope="module")
def bound(bare: Nameless, tmp_path_factory: pytest.TempPathFactory) -> Patch:
    return patch(bare.path, tmp_path_factory.mktemp("bound") / "vmlinux", "--bind")


def test_a_bound_kernel_has_the_bytes_that_the_one_with_names_gets(bound: Patch, slim: Vmlinux, tmp_path: Path) -> None:
    with_names = patch(slim.path, tmp_path / "named", "--bind")
    assert {edit["address"]: (edit["old"], edit["new"], edit["kind"]) for edit in bound.edits} == {
        edit["address"]: (edit["old"], edit["new"], edit["kind"]) for edit in with_names.edits
    }


def test_the_proof_needs_nothing_but_the_two_files(bound: Patch) -> None:
    assert "verified" in bound.out
    assert "verified" in succeed("verify", bound.original, bound.output)
    bound.revert()


def test_a_kernel_that_was_bound_before_it_lost_its_names_shows_the_same(bare: Nameless, bound: Patch) -> None:
    image, before = tool.report(bound.output), report(bare.path)
    assert [(site["address"], site["record"], site["key"]) for site in image["sites"]] == [
        (site["address"], site["record"], site["key"]) for site in before["sites"]
    ]
    assert image["keys"] == before["keys"]
    assert image["findings"] == []
    assert {site["reason"] for site in image["sites"] if site["verdict"] == "direct"} == {"already-direct"}


def test_keys_and_targets_can_be_named_by_their_addresses(bare: Nameless, tmp_path: Path) -> None:
    named = bare.named
    return0 = named.address(RETURN0)
    direct = {call.key: call for call in named.calls if named.is_direct(call, "lutomirski")}
    key, other = [key for key in named.keys.values() if key.name in direct and key.func not in (0, return0)][:2]
    where = f"{key.address:#x}"
    done = patch(bare.path, tmp_path / "set", "--set", f"{where}=RET0", "--key", where, "--bind")
    after = {edit["address"]: edit["new"] for edit in done.edits}
    assert after[where] == return0.to_bytes(8, "little").hex()
    assert after[f"{direct[key.name].address:#x}"] == XOR.hex()
    assert "verified" in succeed("verify", bare.path, done.output)
    elsewhere = patch(bare.path, tmp_path / "other", "--set", f"{where}={other.func:#x}", "--key", where, "--bind")
    after = {edit["address"]: edit["new"] for edit in elsewhere.edits}
    assert {bytes.fromhex(after[f"{direct[key.name].address:#x}"])} == named.codes_for(direct[key.name], other.func)
    inside = f"{where}={other.func + 1:#x}"
    tool.refused("patch", bare.path, "--set", inside, "--dry-run", code="unknown-function")


@pytest.fixture(scope="module")
def hints(bare: Nameless) -> Hints:
    with open_image(bare.path) as image:
        return hints_of(image, locate(image))


def test_the_proof_holds_with_the_hints_and_not_without(bound: Patch, hints: Hints) -> None:
    assert prove(bound.original, bound.output, hints=hints).sites
    with pytest.raises(VerificationError, match="belongs to no site"):
        prove(bound.original, bound.output)


def _moved(hints: Hints, name: str, by: int) -> Hints:
    return hints._replace(helpers={**hints.helpers, name: hints.helpers[name] + by})


def _crossed(hints: Hints) -> Hints:
    """Two keys that have each other's trampolines."""
    (first, second, *rest) = hints.pairs
    crossed = first._replace(trampoline=second.trampoline), second._replace(trampoline=first.trampoline)
    return hints._replace(pairs=(*crossed, *rest))


def _cut(hints: Hints, front: int, back: int) -> Hints:
    assert hints.table is not None
    start, stop = hints.table
    return hints._replace(table=(start + front, stop - back))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        pytest.param(lambda hints: _moved(hints, RETURN_THUNK, 2), "is said to be", id="another-thunk"),
        pytest.param(lambda hints: _moved(hints, RETURN0, 16), "is said to be", id="another-return0"),
        pytest.param(lambda hints: _moved(hints, "xor5rax", -5), "is said to be", id="another-xor"),
        pytest.param(_crossed, "is said to pair", id="crossed-trampolines"),
        pytest.param(lambda hints: _cut(hints, 8, 0), "goes on at", id="first-record-left-out"),
        pytest.param(lambda hints: _cut(hints, 0, 8), "goes on at", id="last-record-left-out"),
    ],
)
def test_the_proof_believes_no_hint(spoil: Callable[[Hints], Hints], reason: str, bound: Patch, hints: Hints) -> None:
    with pytest.raises(VerificationError, match=reason):
        prove(bound.original, bound.output, hints=spoil(hints))
