"""The programs that the bench measures have the forms of calls that it says, and give the right answers."""

import os
import re
import subprocess
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

import pytest

from bench.calls import COPIES, FORMS, build_calls, measure_calls
from bench.updates import OUT_OF_LINE, PEERS, REWRITING, build_updates, measure_updates
from tests.support import toolchain

_ANSWER = 1000  # what calls.c asks each loop for
_LINE, _CALL_OFFSET = 64, 32
_SITES = 100
_STRAIGHT = ("direct", "again", "bound", "patched")  # once the program has made its update
# Where the instructions of each form lead before anything is bound or patched, in objdump's words.
_FORMS: Final = MappingProxyType(
    {
        "direct": r"call [0-9a-f]+ <add_one>",
        "again": r"call [0-9a-f]+ <add_one>",
        "bound": r"call [0-9a-f]+ <__SCT__bound>",
        "patched": r"call [0-9a-f]+ <__SCT__patched>",
        "trampoline": r"call [0-9a-f]+ <__SCT__unpatched>",
        "pointer": r"call \*0x[0-9a-f]+\(%rip\) # [0-9a-f]+ <call_pointer>",
        "retpoline": r"mov 0x[0-9a-f]+\(%rip\),%rax # [0-9a-f]+ <call_pointer>",
        "plt": r"call [0-9a-f]+ <library_add_one@plt>",
        "ifunc": r"call [0-9a-f]+ <\*ABS\*\+0x[0-9a-f]+@plt>",
    }
)

each_form = pytest.mark.parametrize("form", FORMS)


class Programs(NamedTuple):
    """The program with all forms, and the same with one key bound."""

    built: Path
    bound: Path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if missing := toolchain.missing_tools():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"not installed: {', '.join(missing)}")
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def programs(folder: Path) -> Programs:
    return Programs(*build_calls(folder))


@pytest.fixture(scope="module")
def updates(folder: Path) -> Path:
    return build_updates(folder, _SITES)


@cache
def _code(program: Path) -> dict[int, str]:
    """Every instruction by its address, as objdump shows it, blanks made one."""
    command = ["objdump", "-dw", "--no-show-raw-insn", str(program)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = re.findall(r"^ *([0-9a-f]+):\t(.*)$", listing, re.MULTILINE)
    return {int(address, 16): " ".join(text.split()) for address, text in lines}


@cache
def _symbols(program: Path) -> dict[str, int]:
    return toolchain.symbols(program)


def _loops(program: Path, form: str) -> list[int]:
    """Where the loops of a form begin."""
    return [_symbols(program)[f"loop_{form}_{copy}"] for copy in range(COPIES)]


def _instructions(program: Path, form: str) -> set[str]:
    return {_code(program)[loop + _CALL_OFFSET] for loop in _loops(program, form)}


def _matches(pattern: str, texts: set[str]) -> bool:
    return all(re.fullmatch(pattern, text) for text in texts)


def test_every_form_is_in_the_program_as_it_is_called(programs: Programs) -> None:
    assert set(_FORMS) == set(FORMS)
    for form, pattern in _FORMS.items():
        assert _matches(pattern, _instructions(programs.built, form)), form


def test_binding_leads_the_bound_sites_straight_to_the_target_and_no_others(programs: Programs) -> None:
    for form, pattern in _FORMS.items():
        expected = _FORMS["direct"] if form == "bound" else pattern
        assert _matches(expected, _instructions(programs.bound, form)), form


def test_only_what_is_to_be_patched_has_records(programs: Programs) -> None:
    expected = {
        (loop + _CALL_OFFSET, _symbols(programs.built)[f"__SCK__{form}"])
        for form in ("bound", "patched")
        for loop in _loops(programs.built, form)
    }
    records = toolchain.records(programs.built)
    assert {(record.site, record.key) for record in records} == expected
    assert len(records) == 2 * COPIES


def test_the_trampoline_reads_its_key(programs: Programs) -> None:
    trampoline = _symbols(programs.bound)["__SCT__unpatched"]
    text = _code(programs.bound)[trampoline]
    assert re.fullmatch(r"jmp \*0x[0-9a-f]+\(%rip\) # [0-9a-f]+ <__SCK__unpatched>", text)


def test_the_retpoline_is_the_compilers_own(programs: Programs) -> None:
    thunk = _symbols(programs.bound)["__x86_indirect_thunk_rax"]
    for loop in _loops(programs.bound, "retpoline"):
        call = _code(programs.bound)[loop + _CALL_OFFSET + 7]
        assert call == f"call {thunk:x} <__x86_indirect_thunk_rax>"
    # Speculation runs in a circle behind the call; what is called replaces its return address and returns.
    code = [_code(programs.bound)[thunk + at].partition(" ")[0] for at in (0, 5, 7, 10, 12, 16)]
    assert code == ["call", "pause", "lfence", "jmp", "mov", "ret"]


def test_the_plt_leads_to_a_library_and_the_ifunc_is_resolved_at_start(programs: Programs) -> None:
    command = ["readelf", "-rW", str(programs.bound)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    resolver = _symbols(programs.bound)["call_ifunc"]
    assert re.search(r" R_X86_64_JUMP_SLO\w* +0+ library_add_one\b", listing)
    assert re.findall(r" R_X86_64_IRELATIV\w* +([0-9a-f]+)$", listing, re.MULTILINE) == [f"{resolver:x}"]


@each_form
def test_a_loop_differs_from_the_direct_one_in_its_call_alone(programs: Programs, form: str) -> None:
    reference = toolchain.bytes_at(programs.bound, _loops(programs.bound, "direct")[0], _CALL_OFFSET)
    length = {"pointer": 6, "retpoline": 12}.get(form, 5)
    for copy, loop in enumerate(_loops(programs.bound, form)):
        call, behind = loop + _CALL_OFFSET, loop + _CALL_OFFSET + length
        assert toolchain.bytes_at(programs.bound, loop, _CALL_OFFSET) == reference
        found = [_code(programs.bound)[behind + offset] for offset in (0, 3, 6, 8, 9)]
        back = f"jne {call:x} <loop_{form}_{copy}+{_CALL_OFFSET:#x}>"
        assert found == ["mov %rax,%rdi", "dec %rbx", back, "pop %rbx", "ret"]
        assert loop % _LINE == 0
        assert behind + 8 <= loop + _LINE


@pytest.mark.parametrize("bound", [False, True], ids=["built", "bound"])
def test_every_form_gives_the_answer_and_the_patched_one_only_once_it_is_updated(
    programs: Programs, *, bound: bool
) -> None:
    lines = toolchain.run(programs.bound if bound else programs.built, "answers").splitlines()
    # Before and after the update, and how many sites call the target then.
    expected = {form: (_ANSWER, _ANSWER, COPIES if form in _STRAIGHT else 0) for form in FORMS}
    expected["patched"] = (2 * _ANSWER, _ANSWER, COPIES)
    assert {form: tuple(map(int, numbers)) for form, *numbers in map(str.split, lines)} == expected


def test_a_short_measurement_has_a_cost_for_each_form_and_copy(programs: Programs) -> None:
    costs = measure_calls(programs.bound, rounds=5, count=100)
    assert list(costs) == list(FORMS)
    for cost in costs.values():
        assert len(cost.ratios) == COPIES
        assert min(cost.ratios) > 0
        assert cost.cycles > 0


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("way", [*REWRITING, OUT_OF_LINE, *PEERS])
def test_updates_rewrite_every_site_where_the_protocol_does(updates: Path, way: str, threads: int) -> None:
    direct, measured = measure_updates(updates, way, threads, milliseconds=1)
    assert direct == (0 if way == OUT_OF_LINE else _SITES)
    assert measured
    assert all(update.passed > 0 < update.ran for update in measured)


def test_the_sites_of_the_updates_are_prefixed_calls_in_a_line_of_their_own(updates: Path) -> None:
    sites = [record.site for record in toolchain.records(updates)]
    assert len(set(sites)) == _SITES
    for site in sites:
        assert site % _LINE == 0
        assert toolchain.bytes_at(updates, site, 2) == b"\x2e\xe8"
