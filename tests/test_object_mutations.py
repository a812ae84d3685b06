"""Real relocatable objects with random damage: whatever comes of it, it ends well.

Every command gives one of its exit codes, says at most one line, takes neither time nor memory, leaves nothing
half-made and touches no input. What is annotated or patched all the same is proved, and compared by hand.
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

from tests.support.archives import packed
from tests.support.elf_edit import Span
from tests.support.mutations import Mutation, damaged, mutations
from tests.support.object_bench import Bench, keeps_what_there_was, no_more_warnings
from tests.support.object_mutations import REGIONS, regions_of_object, signed, with_wide_numbers
from tests.support.objects import Objects
from tests.support.refusals import INPUT, UNSAFE, UNVERIFIED, Arguments
from tests.support.tool import POLICIES, staticcall, succeed, validate
from tests.support.toolchain import Compiler

# The same examples in every run: a failure here is somebody's change, not somebody's luck.
repeatable = partial(
    settings,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

# By compiler: what is compiled, or written by hand, and has no table; groups, sections for functions, several forms.
PLAIN: Final[tuple[tuple[str, Compiler], ...]] = (
    ("calls-kernel", "gcc"),
    ("calls-function_sections", "clang"),
    ("calls-no_plt", "gcc"),
    ("calls-debug", "clang"),
    ("inline_one", "gcc"),
    ("inline_two", "clang"),
    ("clang_tables", "clang"),
    ("prefixed", "gcc"),
    ("section_relative", "clang"),
    ("nearby", "gcc"),
    ("combined-lld", "clang"),
)
# Those that define what they call, and so can be patched; the keys are one and two.
DEFINED: Final[tuple[tuple[str, Compiler], ...]] = (("two_keys", "gcc"), ("two_keys", "clang"), ("unsorted", "gcc"))
ANNOTATIONS: Final[tuple[Arguments, ...]] = ((), ("--module",), ("--module", "--section", "static_call_sites"))
WISHES: Final[tuple[Arguments, ...]] = (
    ("--bind",),
    ("--set", "one=target"),
    ("--set", "two=first_target", "--bind"),
    ("--set", "one=NULL", "--force", "null-returns-value"),
    ("--set", "one=RET0"),
    ("--set", "two=RET0", "--set", "one=not_here", "--bind", "--strip-signature"),
)


class Sample(NamedTuple):
    """A sound object and where it has what can be damaged."""

    content: bytes
    regions: Mapping[str, Span]

    def damaged(self, damage: list[Mutation]) -> bytes:
        """The object with damage; what it has no place for goes anywhere."""
        return damaged(self.content, self.regions, damage)


def _sample(content: bytes) -> Sample:
    return Sample(content, regions_of_object(content))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def plain(made: Objects) -> list[Sample]:
    """Objects without a table."""
    contents = [made(*case).read_bytes() for case in PLAIN]
    contents += [with_wide_numbers(contents[0]), signed(contents[0])]
    return [_sample(content) for content in contents]


@pytest.fixture(scope="module")
def tables(made: Objects, tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Objects with a table, with keys and trampolines, some as a module is signed."""
    folder = tmp_path_factory.mktemp("tables")
    contents = []
    for name, compiler in DEFINED:
        succeed("annotate", made(name, compiler), "-o", folder / f"{name}-{compiler}.o")
        contents.append((folder / f"{name}-{compiler}.o").read_bytes())
    # What is imported late takes memory of its own.
    (sample, *_) = folder.iterdir()
    succeed("patch", sample, "--bind", "-o", folder / "bound.o")
    succeed("report", "--scan", "--format", "json", sample)
    contents += [signed(contents[0]), with_wide_numbers(contents[1])]
    return [_sample(content) for content in contents]


any_number = st.integers(0, 1 << 20)
any_damage = mutations(REGIONS)


@repeatable(max_examples=150)
@given(any_number, any_damage, st.sampled_from(ANNOTATIONS))
def test_an_annotation_ends_well(
    bench: Bench, plain: list[Sample], number: int, damage: list[Mutation], options: Arguments
) -> None:
    sample = plain[number % len(plain)]
    bench.put(sample.content, sample.damaged(damage))
    _annotate(bench, options)


def _annotate(bench: Bench, options: Arguments) -> None:
    outcome = bench.run("annotate", *options, bench.bad, "-o", bench.out, codes={0, INPUT})
    event(f"annotate: {int(outcome.code)}")
    if outcome.code != 0:
        return
    if bench.out.read_bytes() == bench.bad.read_bytes():
        assert "left as it is" in outcome.out
        return
    bench.run("verify", bench.bad, bench.out, codes={0})
    keeps_what_there_was(bench.bad, bench.out, annotated=True)
    no_more_warnings(bench.bad, bench.out)
    again = bench.run("annotate", *options, bench.out, "-o", bench.folder / "edits", codes={0})
    assert "has its table already" in again.out


@pytest.mark.kernel
@repeatable(max_examples=60)
@given(any_number, any_damage, st.sampled_from(ANNOTATIONS))
def test_an_annotation_of_the_kernels_objects_ends_well(
    bench: Bench, kernel_samples: list[Sample], number: int, damage: list[Mutation], options: Arguments
) -> None:
    sample = kernel_samples[number % len(kernel_samples)]
    bench.put(sample.content, sample.damaged(damage))
    _annotate(bench, options)


@pytest.fixture(scope="module")
def kernel_samples(kernel_objects: Path) -> list[Sample]:
    paths = (kernel_objects / "gcc/arch/x86/kernel/irq.o", kernel_objects / "clang/kernel/softirq.o")
    return [_sample(path.read_bytes()) for path in paths]


@repeatable(max_examples=60)
@given(any_number, any_damage, st.sampled_from(ANNOTATIONS))
def test_an_annotation_of_an_archive_ends_well(
    bench: Bench, plain: list[Sample], number: int, damage: list[Mutation], options: Arguments
) -> None:
    sample, other = plain[number % len(plain)], plain[0].content
    members = (b"first.o/", other), (b"bad.o/", sample.damaged(damage)), (b"notes/", b"odd"), (b"last.o/", other)
    bench.put(packed(*members), packed(*members))
    outcome = bench.run("annotate", *options, bench.bad, "-o", bench.out, codes={0, INPUT})
    if outcome.code == 0:
        bench.run("verify", bench.bad, bench.out, codes={0, INPUT})  # what was left as it is may be no better
    bench.run("report", bench.bad, codes={0, 1, INPUT})


@repeatable(max_examples=100)
@given(any_number, any_damage, st.sampled_from(POLICIES), st.booleans())
def test_a_report_ends_well(
    bench: Bench,
    plain: list[Sample],
    tables: list[Sample],
    number: int,
    damage: list[Mutation],
    policy: str,
    scan: bool,
) -> None:
    samples = [*plain, *tables]
    sample = samples[number % len(samples)]
    bench.put(sample.content, sample.damaged(damage))
    text = bench.run("report", "-v", "--policy", policy, bench.bad, codes={0, 1, INPUT})
    options = ["--scan"] if scan else []
    document = bench.run("report", *options, "--format", "json", bench.bad, codes={0, 1, INPUT})
    if document.code != INPUT:
        validate(json.loads(document.out), "report")
        assert scan or text.code == document.code
        assert all(line.isprintable() for line in text.out.splitlines())


@repeatable(max_examples=150)
@given(any_number, any_damage, st.sampled_from(WISHES), st.sampled_from(POLICIES))
def test_a_patch_ends_well(
    bench: Bench, tables: list[Sample], number: int, damage: list[Mutation], wishes: Arguments, policy: str
) -> None:
    sample = tables[number % len(tables)]
    bench.put(sample.content, sample.damaged(damage))
    arguments = ("patch", bench.bad, "-o", bench.out, "--edits", bench.edits, "--policy", policy, *wishes)
    # Code that was damaged too well for the planner is left to the proof.
    outcome = bench.run(*arguments, codes={0, INPUT, UNSAFE, UNVERIFIED})
    event(f"patch: {int(outcome.code)}")
    if outcome.code != 0:
        return
    bench.run("verify", bench.bad, bench.out, codes={0})
    bench.run("report", bench.out, codes={0, 1})
    keeps_what_there_was(bench.bad, bench.out, annotated=False)
    back = bench.folder / "back"
    assert staticcall("revert", bench.out, "--edits", bench.edits, "-o", back).code == 0
    assert back.read_bytes() == bench.bad.read_bytes()


@repeatable(max_examples=150)
@given(any_number, any_damage)
def test_a_verification_ends_well(
    bench: Bench, plain: list[Sample], tables: list[Sample], number: int, damage: list[Mutation]
) -> None:
    samples = [*plain, *tables]
    sample = samples[number % len(samples)]
    bench.put(sample.content, sample.damaged(damage))
    bench.run("verify", bench.bad, bench.bad, codes={0, INPUT})
    bench.run("verify", bench.good, bench.bad, codes={0, INPUT, UNVERIFIED})
    bench.run("verify", bench.bad, bench.good, codes={0, INPUT, UNVERIFIED})
