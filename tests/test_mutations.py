"""Real files with random damage: whatever comes of it, it ends well.

Every command gives one of its exit codes, says at most one line, takes no time, leaves nothing half-made and
touches no input. What is patched all the same is held against its edits file by a comparison of a few lines.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from tests.support import toolchain
from tests.support.elf_edit import Span
from tests.support.mutations import FIXED, LEGAL, Mutation, damaged, mutations, regions_of
from tests.support.programs import Builder
from tests.support.refusals import Arguments, at_most, one_line
from tests.support.tool import POLICIES, Outcome, digest, staticcall, succeed, validate

# The same examples in every run: a failure here is somebody's change, not somebody's luck.
repeatable = partial(
    settings, derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
SECONDS = 5
CODES = (0, 1, 3, 4, 5)

PROGRAMS: Final[Mapping[str, tuple[str, toolchain.Kind, bool]]] = {
    "pie": ("calls", "pie", False),
    "exec": ("calls", "exec", False),
    "relr": ("calls", "pie", True),
    "library": ("library", "shared", False),
    "generations": ("generations", "pie", False),
    "forms": ("forms", "pie", False),
}
WISHES = (
    ("--bind",),
    ("--set", "alpha=alpha_fast"),
    ("--set", "beta=beta_fast", "--set", "alpha=alpha_fast", "--bind"),
    ("--set", "zero=RET0", "--bind"),
    ("--set", "hook=NULL", "--force", "null-returns-value"),
    ("--set", "plain=plain_sub", "--bind"),
    ("--set", "sct_jmp=plain_sub"),
    ("--set", "posted_permanent=plain_sub"),
    ("--set", "scale=library_scale_fast", "--bind"),
)


class Program(NamedTuple):
    content: bytes
    regions: Mapping[str, Span]


class Bench:
    """Good programs, and a folder where one damaged file at a time is worked on."""

    def __init__(self, programs: Mapping[str, Program], folder: Path) -> None:
        self.programs = programs
        self.folder = folder
        self.file = folder / "file"

    def damage(self, name: str, damage: list[Mutation]) -> bytes:
        """Put a damaged program in place and return its content."""
        content = damaged(*self.programs[name], damage)
        self.file.write_bytes(content)
        return content

    def run(self, *arguments: str | Path, codes: tuple[int, ...] = CODES) -> Outcome:
        """Run the tool, and see what holds however it ends."""
        before = self.names()
        with at_most(SECONDS):
            outcome = staticcall(*arguments)
        assert outcome.code in codes, outcome
        if outcome.code in (0, 1):
            assert outcome.err == "", outcome
        else:
            assert str(self.folder) in one_line(outcome), outcome
            assert outcome.out == "", outcome
            assert self.names() == before, outcome
        event(f"{arguments[0]}: {int(outcome.code)}")
        return outcome

    def names(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}

    def clear(self) -> None:
        for path in self.folder.iterdir():
            path.unlink()


@pytest.fixture(scope="module")
def bench(built: Builder, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    contents = {name: built(*what[:2], relr=what[2]).read_bytes() for name, what in PROGRAMS.items()}
    programs = {name: Program(content, regions_of(content)) for name, content in contents.items()}
    return Bench(programs, tmp_path_factory.mktemp("mutations"))


any_program = st.sampled_from(sorted(PROGRAMS))
any_policy = st.sampled_from(POLICIES)


@repeatable(max_examples=250)
@given(any_program, mutations(), any_policy)
def test_a_report_ends_well(bench: Bench, name: str, damage: list[Mutation], policy: str) -> None:
    bench.clear()
    content = bench.damage(name, damage)
    text = bench.run("report", "-v", "--policy", policy, bench.file, codes=(0, 1, 3))
    scanned = bench.run("report", "--scan", "--format", "json", bench.file, codes=(0, 1, 3))
    if scanned.code < 3:
        validate(json.loads(scanned.out), "report")
        assert text.code < 3, "what can be scanned can be read"
        assert all(line.isprintable() for line in text.out.splitlines())
    assert bench.file.read_bytes() == content
    assert bench.names() == {"file"}


@repeatable(max_examples=250)
@given(any_program, mutations(), st.sampled_from(WISHES), any_policy)
def test_a_patch_ends_well_or_does_what_its_edits_say(
    bench: Bench, name: str, damage: list[Mutation], wishes: Arguments, policy: str
) -> None:
    bench.clear()
    content = bench.damage(name, damage)
    out, edits, back = bench.folder / "out", bench.folder / "edits", bench.folder / "back"
    outcome = bench.run("patch", bench.file, "-o", out, "--edits", edits, "--policy", policy, *wishes)
    assert outcome.code != 1
    assert bench.file.read_bytes() == content
    if outcome.code != 0:
        return
    assert bench.names() == {"file", "out", "edits"}
    assert out.read_bytes() == _edited(content, json.loads(edits.read_text()))
    bench.run("verify", bench.file, out, codes=(0,))
    bench.run("report", out, codes=(0, 1))
    bench.run("revert", out, "--edits", edits, "-o", back, codes=(0,))
    assert back.read_bytes() == content


def _edited(content: bytes, document: dict[str, list[dict[str, str | int]]]) -> bytes:
    data = bytearray(content)
    for edit in document["edits"]:
        offset, old, new = int(edit["file_offset"]), *(bytes.fromhex(str(edit[which])) for which in ("old", "new"))
        assert content[offset : offset + len(old)] == old
        assert len(old) == len(new)
        data[offset : offset + len(new)] = new
    return bytes(data)


@repeatable(max_examples=100)
@given(any_program, mutations(), st.sampled_from(WISHES))
def test_a_patch_in_place_ends_well(bench: Bench, name: str, damage: list[Mutation], wishes: Arguments) -> None:
    bench.clear()
    content = bench.damage(name, damage)
    outcome = bench.run("patch", bench.file, "--in-place", *wishes)
    assert bench.names() == {"file"}
    if outcome.code != 0:
        assert bench.file.read_bytes() == content


@repeatable(max_examples=200)
@given(any_program, mutations())
def test_a_verification_ends_well(bench: Bench, name: str, damage: list[Mutation]) -> None:
    bench.clear()
    content = bench.damage(name, damage)
    good = bench.folder / "good"
    good.write_bytes(bench.programs[name].content)
    bench.run("verify", bench.file, bench.file, codes=(0, 3))
    bench.run("verify", good, bench.file, codes=(0, 3, 5))
    bench.run("verify", bench.file, good, codes=(0, 3, 5))
    assert bench.file.read_bytes() == content


@repeatable(max_examples=200)
@given(any_program, mutations(FIXED))
def test_no_change_of_headers_and_tables_is_proved(bench: Bench, name: str, damage: list[Mutation]) -> None:
    bench.clear()
    damage = [one for one in damage if one.region in bench.programs[name].regions]
    content = bench.damage(name, damage)
    good = bench.folder / "good"
    good.write_bytes(bench.programs[name].content)
    if content != bench.programs[name].content:
        bench.run("verify", good, bench.file, codes=(3, 5))


@repeatable(max_examples=100)
@given(any_program, mutations(LEGAL))
def test_a_deep_verification_ends_well(bench: Bench, name: str, damage: list[Mutation]) -> None:
    bench.clear()
    bench.damage(name, damage)
    bench.run("verify", "--deep", bench.file, bench.file, codes=(0, 3))


@pytest.fixture(scope="module")
def pair(bench: Bench) -> tuple[bytes, bytes, str]:
    """An original, the same patched, and its edits file."""
    bench.clear()
    bench.file.write_bytes(bench.programs["pie"].content)
    out, edits = bench.folder / "out", bench.folder / "edits"
    succeed("patch", bench.file, "--bind", "-o", out, "--edits", edits)
    return bench.file.read_bytes(), out.read_bytes(), edits.read_text()


# Ways to change a text: where, how much of it goes, and what comes instead.
splices = st.lists(
    st.tuples(
        st.integers(0, 1 << 16),
        st.integers(0, 12),
        st.one_of(
            st.text(max_size=3),
            st.sampled_from(
                ["-", "0", "1", "9" * 30, "1e999", "null", "true", "{", "}", "[", "]", '"', ",", ".", "\\"]
            ),
        ),
    ),
    min_size=1,
    max_size=3,
)


def _spliced(text: str, changes: list[tuple[int, int, str]]) -> str:
    for place, length, instead in changes:
        at = place % (len(text) + 1)
        text = text[:at] + instead + text[at + length :]
    return text


@repeatable(max_examples=250)
@given(splices)
def test_a_damaged_edits_file_restores_the_original_or_nothing(
    bench: Bench, pair: tuple[bytes, bytes, str], changes: list[tuple[int, int, str]]
) -> None:
    bench.clear()
    original, patched, text = pair
    edits, back = bench.folder / "edits", bench.folder / "back"
    bench.file.write_bytes(patched)
    edits.write_text(_spliced(text, changes), encoding="utf-8", errors="surrogatepass", newline="")
    outcome = bench.run("revert", bench.file, "--edits", edits, "-o", back, codes=(0, 3, 4, 5))
    assert bench.file.read_bytes() == patched
    if outcome.code == 0:
        assert back.read_bytes() == original
        assert digest(back) in edits.read_text(encoding="utf-8")


OPTIONS = """policy = "kernel"
line = 32
bind = true
key = "a*"
force = ["kaslr-slot"]
[set]
alpha = "alpha_fast"
"""


@repeatable(max_examples=200)
@given(splices)
def test_damaged_options_are_taken_or_refused(bench: Bench, changes: list[tuple[int, int, str]]) -> None:
    bench.clear()
    options = bench.folder / "options"
    bench.file.write_bytes(bench.programs["pie"].content)
    options.write_text(_spliced(OPTIONS, changes), encoding="utf-8", errors="surrogatepass", newline="")
    with at_most(SECONDS):
        outcome = staticcall("patch", bench.file, "--config", options, "--dry-run")
    assert outcome.code in (0, 2, 3, 4), outcome
    if outcome.code != 0:
        one_line(outcome)


@repeatable(max_examples=200)
@given(st.binary(max_size=400), st.integers(0, 64))
def test_bytes_that_only_begin_like_an_image_are_refused(bench: Bench, content: bytes, kept: int) -> None:
    bench.clear()
    bench.file.write_bytes(bench.programs["pie"].content[:kept] + content)
    for arguments in (("report",), ("patch", "--bind", "--in-place"), ("verify", bench.file)):
        bench.run(*arguments, bench.file, codes=(3,))
