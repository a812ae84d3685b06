"""Patching real kernels: what is refused, and that a patched kernel is recognised and can be patched on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.tool import POLICIES, digest, refused, report, succeed
from tests.support.vmlinux import Vmlinux

pytestmark = pytest.mark.kernel

# Static calls by what their functions return in C, in every kernel of the two series.
RETURNS_VALUE = "pv_sched_clock"  # u64 native_sched_clock(void)
RETURNS_NOTHING = "amd_pstate_update_perf"  # static void pstate_update_perf(...)
FUNCTION = "trace_clock_jiffies"  # u64 trace_clock_jiffies(void)
FREED_FUNCTION = "start_kernel"


class Patcher:
    """Tries to patch a kernel, and sees that nothing comes of it but words."""

    def __init__(self, kernel: Vmlinux, folder: Path) -> None:
        self._original = kernel.path
        self._folder = folder

    def refuses(self, *arguments: str, reason: str) -> str:
        """See that a patch is refused and leaves nothing behind; returns the line that says why."""
        results = {"-o": "out", "--edits": "edits", "--report": "report"}
        places = (text for option, name in results.items() for text in (option, str(self._folder / name)))
        with self._nothing_written():
            line = refused("patch", self._original, *arguments, *places, code=reason)
        assert line.startswith(f"staticcall: {self._original}: ")
        return line

    def plans(self, *arguments: str) -> str:
        """See that a patch would be made, and return what would be changed."""
        with self._nothing_written():
            return succeed("patch", self._original, *arguments, "--dry-run")

    @contextmanager
    def _nothing_written(self) -> Iterator[None]:
        before = self._original.stat()
        yield
        after = self._original.stat()
        assert (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size)
        assert not any(self._folder.iterdir())


@pytest.fixture
def patch(kernel: Vmlinux, tmp_path: Path) -> Patcher:
    return Patcher(kernel, tmp_path)


def test_a_key_without_a_relocation_is_given_no_pointer(kernel: Vmlinux, patch: Patcher) -> None:
    key = min(key.name for key in kernel.keys.values() if key.func == 0)
    wish = ["--set", f"{key}={FUNCTION}"]
    assert f"key {key} is NULL" in patch.refuses(*wish, reason="kaslr-slot")
    # Which key this is and what it returns differs between the kernels.
    assert f"{key}: NULL -> {FUNCTION}" in patch.plans(*wish, "--force", "kaslr-slot", "--force-type")


def test_a_key_with_a_relocation_is_not_made_null(patch: Patcher) -> None:
    wish = ["--set", f"{RETURNS_NOTHING}=NULL"]
    assert f"key {RETURNS_NOTHING} is not NULL" in patch.refuses(*wish, reason="kaslr-slot")
    assert f"{RETURNS_NOTHING}: pstate_update_perf -> NULL" in patch.plans(*wish, "--force", "kaslr-slot")


def test_callers_that_want_a_value_are_not_left_without(patch: Patcher) -> None:
    wish = ["--set", f"{RETURNS_VALUE}=NULL"]
    patch.refuses(*wish, reason="kaslr-slot")
    line = patch.refuses(*wish, "--force", "kaslr-slot", reason="null-returns-value")
    assert "native_sched_clock" in line
    assert "returns a value" in line
    assert "native_sched_clock -> NULL" in patch.plans(*wish, "--force", "kaslr-slot", "--force", "null-returns-value")


def test_a_target_that_is_freed_after_the_start_is_refused(patch: Patcher) -> None:
    wish = ["--set", f"{RETURNS_VALUE}={FREED_FUNCTION}"]
    assert ".init.text" in patch.refuses(*wish, reason="target-in-init")
    assert f"-> {FREED_FUNCTION}" in patch.plans(*wish, "--force", "target-in-init", "--force-type")


def test_a_key_that_only_modules_use_is_used_after_the_start(kernel: Vmlinux, patch: Patcher) -> None:
    used = {call.key for call in kernel.calls}
    key = min(key.name for key in kernel.keys.values() if key.func and key.name not in used)
    patch.refuses("--set", f"{key}={FREED_FUNCTION}", reason="target-in-init")


@pytest.mark.parametrize("kernel", ["612"], indirect=True)
def test_a_key_that_is_used_at_the_start_only_may_lead_to_what_is_freed(kernel: Vmlinux, patch: Patcher) -> None:
    stays = {call.key for call in kernel.calls if call.stays}
    keys = sorted({call.key for call in kernel.calls} - stays)
    keys = [key for key in keys if kernel.keys[key].func]
    if not keys:
        pytest.skip("this kernel has no such key")
    assert f"-> {FREED_FUNCTION}" in patch.plans("--set", f"{keys[0]}={FREED_FUNCTION}", "--force-type")


@pytest.mark.parametrize(
    ("wish", "reason", "advice"),
    [
        ("pv_sched_clok=native_sched_clock", "unknown-key", "did you mean pv_sched_clock"),
        ("pv_sched_clock=native_sched_clok", "unknown-function", "did you mean native_sched_clock"),
        ("no_such_thing_at_all=NULL", "unknown-key", "check the spelling"),
        ("pv_sched_clock=linux_banner", "unknown-function", ""),
        ("pv_sched_clock=0x1234", "unknown-function", "start of a function"),
    ],
)
def test_a_name_that_is_not_there_is_refused_with_what_is_near(
    wish: str, reason: str, advice: str, patch: Patcher
) -> None:
    assert advice in patch.refuses("--set", wish, reason=reason)


def test_a_function_of_a_name_that_several_have_is_meant_by_its_address(kernel: Vmlinux, patch: Patcher) -> None:
    text = next(section for section in kernel.sections if section.name == ".text")
    inside = range(text.address, text.address + text.size)
    name = min(
        name
        for name, extents in kernel.functions.items()
        if len({extent.start for extent in extents}) > 1 and all(extent.start in inside for extent in extents)
    )
    line = patch.refuses("--set", f"{RETURNS_VALUE}={name}", reason="ambiguous-function")
    for extent in kernel.functions[name]:
        assert f"{extent.start:#x}" in line
        assert f"-> {name}, " in patch.plans("--set", f"{RETURNS_VALUE}={extent.start:#x}", "--force-type")


def test_one_refusal_among_several_wishes_is_a_refusal_of_all(patch: Patcher) -> None:
    good, bad = f"{RETURNS_VALUE}={FUNCTION}", f"{RETURNS_NOTHING}=NULL"
    patch.refuses("--set", good, "--set", bad, "--bind", reason="kaslr-slot")


def test_binding_by_prefixes_changes_nothing(patch: Patcher) -> None:
    # No kernel has prefixes at its sites: it would not accept them.
    assert "  0 edits, 0 bytes\n" in patch.plans("--policy", "torvalds", "--bind")


class Bound(NamedTuple):
    """A kernel with every site bound that a policy allows."""

    path: Path
    edits: Path


@contextmanager
def _bound(original: Path, policy: str, folder: Path) -> Iterator[Bound]:
    """Hundreds of megabytes, so they go as soon as nobody needs them any more."""
    bound = Bound(folder / f"bound-{policy}", folder / f"edits-{policy}.json")
    succeed("patch", original, "--policy", policy, "--bind", "-o", bound.path, "--edits", bound.edits)
    try:
        yield bound
    finally:
        bound.path.unlink()


@pytest.fixture(scope="module")
def bound(kernel: Vmlinux, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bound]:
    with _bound(kernel.path, "kernel", tmp_path_factory.mktemp("bound")) as made:
        yield made


def test_a_patched_kernel_is_recognised(kernel: Vmlinux, bound: Bound) -> None:
    image = report("--policy", "kernel", bound.path)
    edited = {edit["address"] for edit in json.loads(bound.edits.read_text())["edits"]}
    assert image["findings"] == []
    assert edited == {f"{call.address:#x}" for call in kernel.calls if kernel.is_direct(call, "kernel")}
    assert {site["address"] for site in image["sites"] if site["reason"] == "already-direct"} == edited
    for call, site in zip(sorted(kernel.calls, key=lambda call: call.address), image["sites"], strict=True):
        assert (site["record"], site["key"], site["tail"]) == (call.record, call.key, call.tail)
        if site["address"] in edited:
            assert bytes.fromhex(site["bytes"]) in kernel.codes_for(call, kernel.keys[call.key].func)
        else:
            assert bytes.fromhex(site["bytes"]) == call.code


@pytest.mark.parametrize("policy", POLICIES)
def test_binding_a_bound_kernel_changes_nothing(policy: str, bound: Bound) -> None:
    assert "  0 edits, 0 bytes\n" in succeed("patch", bound.path, "--policy", policy, "--bind", "--dry-run")


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["612"], indirect=True)
def test_binding_in_two_steps_is_binding_in_one_and_can_be_taken_back(
    kernel: Vmlinux, bound: Bound, tmp_path: Path
) -> None:
    with _bound(kernel.path, "lutomirski", tmp_path) as first, _bound(first.path, "kernel", tmp_path) as second:
        assert digest(second.path) == digest(bound.path)
        for step in (second, first):
            # In place: the first step's undo file goes on from where the second one's ends.
            succeed("revert", second.path, "--edits", step.edits, "--in-place")
        assert digest(second.path) == digest(kernel.path)
