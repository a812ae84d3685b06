"""A kernel module whose table the tool made, and whose calls it retargeted, lives in the kernel it was built for.

The guest's kernel is the judge. It resolves the relocations, finds the keys that the records name, refuses
instructions that it does not know as sites, and patches every site. So each place that calls is asked who answered,
and its instructions are read back: a direct call to the target there is the work of a record that was right.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

import pytest

from tests.support import guest, modules
from tests.support.elf_edit import Elf
from tests.support.modules import ARGUMENT, TABLE, Annotator, Life, State, Workshop
from tests.support.tool import digest, succeed
from tests.support.vmlinux import RETURN0, XOR

pytestmark = [pytest.mark.kernel, pytest.mark.boot, pytest.mark.usefixtures("guest_tools")]

NOTHING = ""  # no function: a key's slot is NULL

Targets = Mapping[str, str]

AT_FIRST: Final[Targets] = MappingProxyType(
    {"answer": "demo_answer_first", "note": "demo_note_first", "hint": NOTHING, "spare": RETURN0}
)
AT_LAST: Final[Targets] = MappingProxyType({key: f"demo_{key}_third" for key in AT_FIRST})

OTHER_ANNOTATORS: Final[tuple[Annotator, ...]] = ("beside", "alone", "nobody")

# What the tool is asked for, and where the keys lead then. No `hint`: it has no relocation that could be edited.
WISHES: Final[Mapping[str, tuple[Mapping[str, str], Targets]]] = MappingProxyType(
    {
        "functions": (
            {
                "demo_answer": "demo_answer_second",
                "demo_note": "demo_note_second",
                "demo_spare": "demo_spare_second",
            },
            {"answer": "demo_answer_second", "note": "demo_note_second", "spare": "demo_spare_second"},
        ),
        "from-null": ({"demo_hint": "demo_hint_second"}, {"hint": "demo_hint_second"}),
        "return0": ({"demo_answer": "RET0"}, {"answer": RETURN0}),
        "null": ({"demo_note": "NULL"}, {"note": NOTHING}),
    }
)
# A function of the kernel's that nothing in the module names.
IMPORTED = {"demo_answer": "int_sqrt"}

# All sites, by what the keys say so far.
BOUND = ("--bind", "--policy=kernel")

CALLING: Final = MappingProxyType(
    {
        "plain": ("answer",),
        "tail": ("answer",),
        "conditional_tail": ("answer",),
        "two_keys": ("answer", "spare"),
        "note": ("note",),
        "note_tail": ("note",),
        "hint": ("hint",),
        "hint_tail": ("hint",),
        "spare": ("spare",),
    }
)
HUNDREDS: Final = MappingProxyType({"first": 1000, "second": 2000, "third": 3000})


def _number(target: str) -> int:
    """What a target comes to; a call that is none leaves the module's zero."""
    if target in (NOTHING, RETURN0):
        return 0
    return 12 if target == "int_sqrt" else HUNDREDS[target.rpartition("_")[2]] + ARGUMENT


def _answers(targets: Targets) -> dict[str, int]:
    number = {key: _number(target) for key, target in targets.items()}
    return {
        "plain": number["answer"] + 100_000,
        "tail": number["answer"],
        "conditional_tail": number["answer"],
        "two_keys": number["answer"] + 10_000 * number["spare"],
        "note": number["note"],
        "note_tail": number["note"],
        "hint": number["hint"],
        "hint_tail": number["hint"],
        "spare": number["spare"] + 100_000,
        "resched": ARGUMENT,
    }


def _branches(targets: Targets, place: str) -> set[str]:
    """Where a place leads: the kernel writes a call of nothing, and one that returns 0, as no call at all."""
    leads = {targets[key] for key in CALLING[place]} - {NOTHING}
    return leads if place.endswith("tail") else leads - {RETURN0}


def _assert_state(state: State, targets: Targets) -> None:
    assert state.answers == _answers(targets)
    assert {name: state.places[name].branches for name in CALLING} == {
        name: _branches(targets, name) for name in CALLING
    }
    for name in ("plain", "spare"):
        (key,) = CALLING[name]
        assert (XOR in state.places[name].code) == (targets[key] == RETURN0)


def _assert_life(life: Life, targets: Targets) -> None:
    assert life.loaded, life.text
    _assert_state(life.before, targets)
    assert life.init == _number(targets["answer"])
    _assert_state(life.after, AT_LAST)
    assert life.exit == _number(AT_LAST["answer"])
    assert life.unloaded, life.text


# The modules


class Modules(NamedTuple):
    """Modules by what is special about them, and what became of them in one guest."""

    paths: Mapping[str, Path]
    lives: Mapping[str, Life]
    boot: guest.Boot


def _options(wishes: Mapping[str, str]) -> list[str]:
    sets = [f"--set={key}={target}" for key, target in wishes.items()]
    if "NULL" in wishes.values():
        # No type data says that the target so far returns nothing.
        sets.append("--force=null-returns-value")
    return sets


def _retargeted(original: Path, folder: Path, options: Sequence[str]) -> Path:
    """A module that the tool patched, verified, and can turn back."""
    folder.mkdir()
    output, edits, back = folder / "patched.ko", folder / "edits.json", folder / "back.ko"
    succeed("patch", original, *options, "-o", output, "--edits", edits)
    succeed("verify", original, output)
    succeed("revert", output, "--edits", edits, "-o", back)
    assert digest(back) == digest(original) != digest(output)
    return output


@pytest.fixture(scope="module")
def workshop(development: modules.Development, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(development, tmp_path_factory.mktemp("module"))


@pytest.fixture(scope="module")
def control(workshop: Workshop) -> Path:
    """The module as Debian's objtool leaves it."""
    return workshop.build("objtool")


@pytest.fixture(scope="module")
def annotated(
    development: modules.Development, workshop: Workshop, control: Path, tmp_path_factory: pytest.TempPathFactory
) -> Modules:
    paths: dict[str, Path] = {"objtool": control, **{name: workshop.build(name) for name in OTHER_ANNOTATORS}}
    booted, lives = modules.lives(development, tmp_path_factory.mktemp("annotated") / "guest", paths)
    return Modules(paths, lives, booted)


@pytest.fixture(scope="module")
def retargeted(
    development: modules.Development, workshop: Workshop, annotated: Modules, tmp_path_factory: pytest.TempPathFactory
) -> Modules:
    folder = tmp_path_factory.mktemp("retargeted")
    options: dict[str, Sequence[str]] = {name: _options(wishes) for name, (wishes, _) in WISHES.items()}
    options |= {"bound": BOUND, "imported": [*_options(IMPORTED), "--force=unversioned-import"]}
    paths = {name: _retargeted(annotated.paths["beside"], folder / name, chosen) for name, chosen in options.items()}
    # So that kbuild sees the new import, and writes down which version of it the module wants.
    paths["imported-early"] = workshop.build("beside", _options(IMPORTED))
    booted, lives = modules.lives(development, folder / "guest", paths)
    return Modules(paths, lives, booted)


def test_a_module_has_the_records_that_objtool_makes(annotated: Modules) -> None:
    control, ours = (modules.relocations(annotated.paths[maker])[TABLE] for maker in ("objtool", "beside"))
    assert len(control) == 2 * 13
    assert ours == control


@pytest.mark.parametrize("name", ["objtool", "beside", "alone"])
def test_an_annotated_module_calls_its_targets_directly(name: str, annotated: Modules) -> None:
    _assert_life(annotated.lives[name], AT_FIRST)


@pytest.mark.parametrize("name", WISHES)
def test_a_retargeted_module_calls_its_new_targets_until_they_are_updated(name: str, retargeted: Modules) -> None:
    _assert_life(retargeted.lives[name], {**AT_FIRST, **WISHES[name][1]})


def test_a_bound_module_calls_the_targets_that_it_had(retargeted: Modules) -> None:
    _assert_life(retargeted.lives["bound"], AT_FIRST)


def test_an_object_may_be_led_to_a_new_import_before_the_module_is_linked(retargeted: Modules) -> None:
    life = retargeted.lives["imported-early"]
    _assert_life(life, {**AT_FIRST, "answer": "int_sqrt"})
    assert "no symbol version" not in life.text


def test_debians_kernel_wants_a_version_of_every_import(retargeted: Modules) -> None:
    # A linked module lists the versions of what it imports, and no patch can know the one of a new import.
    life = retargeted.lives["imported"]
    assert not life.loaded
    assert "no symbol version for int_sqrt" in life.text


@pytest.mark.parametrize("made", ["annotated", "retargeted"])
def test_the_kernel_has_no_complaints(made: str, request: pytest.FixtureRequest) -> None:
    assert request.getfixturevalue(made).boot.problems == ()


@pytest.mark.parametrize("made", ["annotated", "retargeted"])
def test_the_kernel_finds_the_key_of_a_trampoline_that_it_exports(made: str, request: pytest.FixtureRequest) -> None:
    lives = request.getfixturevalue(made).lives
    for life in (lives[name] for name in lives if name not in ("nobody", "imported")):
        assert life.before.places["resched"].branches == {"__cond_resched"}
        assert life.preempted.places["resched"].branches == set()
        assert XOR in life.preempted.places["resched"].code
        assert life.after.places["resched"].branches == {"__cond_resched"}


def test_without_records_all_calls_stay_with_the_trampolines(annotated: Modules) -> None:
    life = annotated.lives["nobody"]
    assert modules.records(annotated.paths["nobody"]) == []
    assert life.loaded
    assert life.after.answers == _answers(AT_LAST)
    for state in (life.before, life.after):
        assert state.places["plain"].branches == {"__SCT__demo_answer"}
        assert state.places["resched"].branches == {"__SCT__might_resched"}


# Debian's kvm, which needs no virtual machine extensions itself: a module for some processor brings them.

KVM_WISHES: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType(
    {
        "a function": {"tp_func_kvm_pio": "__traceiter_kvm_eoi", "tp_func_kvm_fpu": "RET0"},
        "from NULL": {"kvm_x86_get_cpl": "kvm_arch_vcpu_runnable"},
        "NULL": {"tp_func_kvm_msr": "NULL"},
    }
)


def test_a_retargeted_kvm_loads_and_unloads(development: modules.Development, tmp_path: Path) -> None:
    original, bypass = (modules.packaged(development, name, tmp_path) for name in ("kvm", "irqbypass"))
    versions = [original]
    for number, options in enumerate([BOUND, *(_options(wishes) for wishes in KVM_WISHES.values())]):
        versions.append(tmp_path / f"kvm-{number}.ko")
        succeed("patch", original, *options, "--strip-signature", "-o", versions[-1])
    commands = [f"insmod /files/{bypass.name}"]
    commands += [f"insmod /files/{path.name} && cut -d ' ' -f 1,5 /proc/modules && rmmod kvm" for path in versions]
    files = {path.name: path for path in (bypass, *versions)}
    booted = guest.boot(development.vmlinux, tmp_path / "guest", files=files, commands=commands)
    assert booted.problems == ()
    assert [output.splitlines() for output in booted.outputs[1:]] == [["kvm Live", "irqbypass Live"]] * len(versions)


# What these tests could not see, they would not guard against.

_RELOCATION = struct.Struct("<QQq")
_PLT32 = 4


def _relocations(elf: Elf, section: str) -> list[int]:
    """Where the entries of a relocation section are in the file."""
    offset, size = elf.span(section)
    return list(range(offset, offset + size, _RELOCATION.size))


def _symbol_number(elf: Elf, name: str) -> int:
    return (elf.symbol(name).at - elf.span(".symtab").offset) // 24


def _lead_record(elf: Elf, entry: int, symbol: str, addend: int) -> None:
    """Point one half of a record elsewhere; the halves of the n-th record are the entries 2n and 2n + 1."""
    at = _relocations(elf, ".rela.static_call_sites")[entry]
    offset, info, _ = _RELOCATION.unpack_from(elf.data, at)
    _RELOCATION.pack_into(elf.data, at, offset, _symbol_number(elf, symbol) << 32 | info & 0xFFFF_FFFF, addend)


def _sites_only(elf: Elf) -> None:
    """Lead the calls elsewhere, and neither the trampoline nor the key, nor what static_call_update() is given."""
    old, new = (_symbol_number(elf, name) for name in ("__SCT__demo_answer", "demo_answer_second"))
    for at in _relocations(elf, ".rela.text"):
        offset, info, addend = _RELOCATION.unpack_from(elf.data, at)
        if info >> 32 == old and info & 0xFFFF_FFFF == _PLT32:
            _RELOCATION.pack_into(elf.data, at, offset, new << 32 | info & 0xFFFF_FFFF, addend)


def _key_in_code(elf: Elf) -> None:
    _lead_record(elf, 1, "demo_answer_first", 0)


def _site_in_a_target(elf: Elf) -> None:
    _lead_record(elf, 0, "demo_answer_first", 0)


def _edited(original: Path, output: Path, edit: Callable[[Elf], None]) -> Path:
    elf = Elf(original.read_bytes())
    edit(elf)
    output.write_bytes(elf.data)
    return output


def test_the_kernel_undoes_a_change_of_sites_alone(
    development: modules.Development, control: Path, tmp_path: Path
) -> None:
    half = _edited(control, tmp_path / "half.ko", _sites_only)
    booted, lives = modules.lives(development, tmp_path / "guest", {"half": half})
    assert booted.problems == ()
    _assert_life(lives["half"], AT_FIRST)


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [(_site_in_a_target, "unexpected static_call insn"), (_key_in_code, "Oops")],
)
def test_the_kernel_stumbles_over_a_record_that_leads_astray(
    edit: Callable[[Elf], None], complaint: str, development: modules.Development, control: Path, tmp_path: Path
) -> None:
    astray = _edited(control, tmp_path / "astray.ko", edit)
    booted, lives = modules.lives(development, tmp_path / "guest", {"astray": astray})
    assert not lives["astray"].loaded
    assert any(complaint in problem for problem in booted.problems), booted.log
