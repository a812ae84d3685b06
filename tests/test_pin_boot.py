"""Pinned sites of kernels and modules: updates at run time pass them by, and reach all the others.

The guest's kernel is the judge: it sorts the table with its repeated records, patches what they list, and leads the
keys elsewhere while it runs. After each time memory is held against the patched file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support import guest, modules
from tests.support.booting import Patched, assert_revert, boot_and_compare, func_in, patched_kernel, places_of
from tests.support.modules import ARGUMENT, Life, Workshop
from tests.support.tool import digest, report, succeed
from tests.support.vmlinux import RETURN0, Vmlinux
from tests.test_module_boot import AT_FIRST, AT_LAST, HUNDREDS, _assert_state

pytestmark = [pytest.mark.kernel, pytest.mark.boot, pytest.mark.usefixtures("guest_tools")]

# Both follow the preemption model: to a function and RET0, and to a function and NULL.
KEYS = ("might_resched", "preempt_schedule")
MODELS = ("full", "none", "voluntary", "full", "none")
SWITCH = "echo {} > /sys/kernel/debug/sched/preempt; cat /sys/kernel/debug/sched/preempt; kcore_compare /places"

WISHES: Mapping[str, tuple[str, ...]] = {
    "as they are": ("--policy=lutomirski",),
    "to new targets": ("--policy=kernel", "--set=might_resched=__cond_resched", "--bind"),
    "some": ("--policy=block8", "--set=might_resched=__cond_resched"),
}


def _pinned(kernel: Vmlinux, patched: Patched) -> set[int]:
    """The sites whose records were replaced, by the records' places in the original."""
    start = kernel.address("__start_static_call_sites")
    by_record = {start + 8 * call.record: call.address for call in kernel.calls}
    return {by_record[int(edit["address"], 16)] for edit in patched.edits if edit["kind"] == "record"}


@pytest.mark.parametrize("how", WISHES)
def test_pinned_sites_stay_while_the_kernel_switches_its_model(how: str, slim: Vmlinux, tmp_path: Path) -> None:
    calls = [call for call in slim.calls if call.key in KEYS]
    with patched_kernel(slim, tmp_path, *WISHES[how], *(f"--pin={key}" for key in KEYS)) as patched:
        pinned = _pinned(slim, patched)
        known = report("--edits", patched.edits_path, "--fail-on", "never", patched.path)
        places = places_of(slim, patched.path, KEYS)
        commands = [SWITCH.format(model) for model in MODELS]
        booted = boot_and_compare(patched.path, tmp_path, places, options="preempt=voluntary", commands=commands)
        assert_revert(slim, patched)
    policy = WISHES[how][0].partition("=")[2]
    assert pinned == {call.address for call in calls if slim.is_direct(call, policy)}
    assert {int(site["address"], 16) for site in known["sites"] if site.get("pinned")} == pinned
    assert known["summary"]["sites"] == len(slim.calls)
    funcs: dict[str, set[int]] = {key: set() for key in KEYS}
    for model, output in zip(MODELS, booted.outputs, strict=True):
        assert f"({model})" in output
        differing = {
            int(address, 16): bytes.fromhex(code)
            for address, code in re.findall(r"^differs (\w+) (\w+)$", output, re.MULTILINE)
        }
        assert f"compared {len(places)} " in output
        assert pinned.isdisjoint(differing)
        memory = {**places, **differing}
        for call in calls:
            func = func_in(memory, slim.keys[call.key])
            funcs[call.key].add(func)
            if call.stays and call.address not in pinned:
                assert memory[call.address] in slim.codes_for(call, func), f"{call.address:#x} in {model}"
    # The keys were led elsewhere and back, so whoever could follow had to.
    assert {slim.address(RETURN0), slim.address("__cond_resched")} == funcs["might_resched"]
    assert len(funcs["preempt_schedule"]) > 1
    assert 0 in funcs["preempt_schedule"]
    stays = {call.address for call in calls if call.stays and call.address in pinned}
    assert len(stays) > 300
    for call in calls:
        if call.address in stays:
            target = slim.address("__cond_resched") if f"--set={call.key}=__cond_resched" in WISHES[how] else None
            assert places[call.address] in slim.codes_for(call, target or slim.keys[call.key].func)


# ---- modules ----

PINS = ("demo_answer", "demo_spare")
MODULE_WISHES: Mapping[str, tuple[str, ...]] = {
    "as-they-are": ("--policy=kernel",),
    "elsewhere": ("--policy=kernel", "--set=demo_answer=demo_answer_second", "--set=demo_spare=demo_spare_second"),
    "return0": ("--policy=kernel", "--set=demo_answer=RET0", "--bind"),
    "some": ("--policy=lutomirski",),
}
SECOND = {"answer": "demo_answer_second", "spare": "demo_spare_second"}
TARGETS: Mapping[str, Mapping[str, str]] = {
    "as-they-are": {},
    "elsewhere": SECOND,
    "return0": {"answer": RETURN0},
}


@pytest.fixture(scope="module")
def control(development: modules.Development, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The module as Debian's objtool leaves it."""
    return Workshop(development, tmp_path_factory.mktemp("pinned-module")).build("objtool")


@pytest.fixture(scope="module")
def pinned(control: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Modules with pinned sites, which can be turned back."""
    found = {}
    for name, options in MODULE_WISHES.items():
        folder = tmp_path_factory.mktemp("pinned")
        output, edits, back = folder / "pinned.ko", folder / "edits.json", folder / "back.ko"
        succeed("patch", control, *options, *(f"--pin={key}" for key in PINS), "-o", output, "--edits", edits)
        succeed("verify", control, output)
        succeed("revert", output, "--edits", edits, "-o", back)
        assert digest(back) == digest(control) != digest(output)
        found[name] = output
    return found


@pytest.fixture(scope="module")
def lives(
    development: modules.Development, pinned: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Life]:
    booted, found = modules.lives(development, tmp_path_factory.mktemp("pinned-lives") / "guest", pinned)
    assert booted.problems == ()
    return found


def _answered(target: str) -> int:
    return 0 if target == RETURN0 else HUNDREDS[target.rpartition("_")[2]] + ARGUMENT


@pytest.mark.parametrize("name", TARGETS)
def test_an_update_in_a_module_passes_its_pinned_sites_by(name: str, lives: Mapping[str, Life]) -> None:
    life, first = lives[name], {**AT_FIRST, **TARGETS[name]}
    assert life.loaded, life.text
    assert life.unloaded, life.text
    _assert_state(life.before, first)
    stayed = {key: first[key] for key in ("answer", "spare")}
    _assert_state(life.after, {**AT_LAST, **stayed})
    # Sites in .init.text and .exit.text are pinned as well.
    assert life.init == life.exit == _answered(first["answer"])


def test_sites_of_a_module_that_are_not_pinned_follow(pinned: Mapping[str, Path], lives: Mapping[str, Life]) -> None:
    path = pinned["some"]
    records = report("--edits", path.with_name("edits.json"), "--policy=lutomirski", "--fail-on", "never", path)
    stay = {site["function"].partition("+")[0] for site in records["sites"] if site.get("pinned")}
    where = {"plain": "plain", "tail": "tail", "conditional_tail": "demo_conditional_tail"}
    life = lives["some"]
    followed = {place for place, function in where.items() if function not in stay}
    assert "tail" in followed
    for place, function in where.items():
        number = _answered("demo_answer_first" if function in stay else "demo_answer_third")
        assert life.after.answers[place] == number + 100_000 * (place == "plain")
    assert life.after.answers["note"] == _answered("demo_note_third")


def test_a_pinned_kvm_loads_and_unloads(development: modules.Development, tmp_path: Path) -> None:
    original, bypass = (modules.packaged(development, name, tmp_path) for name in ("kvm", "irqbypass"))
    image = report("--policy=kernel", "--fail-on", "never", original)
    direct = [site["key"] for site in image["sites"] if site["verdict"] == "direct"]
    keys = sorted({key["name"] for key in image["keys"] if key["defined"] and key["name"] in direct})
    assert len(keys) > 50
    output, edits = tmp_path / "pinned.ko", tmp_path / "edits.json"
    # Nearly all of them are NULL until a vendor's module is loaded, and what they return nobody says.
    options = ("--policy=kernel", "--strip-signature", "--force=null-returns-value", "--edits", edits)
    succeed("patch", original, *(f"--pin={key}" for key in keys), *options, "-o", output)
    succeed("verify", original, output, "--deep")
    known = report("--edits", edits, "--policy=kernel", "--fail-on", "never", output)
    assert known["summary"]["pinned"] > len(keys) / 2
    assert known["summary"]["sites"] == image["summary"]["sites"]
    commands = [
        f"insmod /files/{bypass.name}",
        f"insmod /files/{output.name} && grep -c ^kvm /proc/modules && rmmod kvm",
    ]
    files = {path.name: path for path in (bypass, output)}
    booted = guest.boot(development.vmlinux, tmp_path / "guest", files=files, commands=commands)
    assert booted.problems == ()
    assert booted.outputs[1].split() == ["1"]
