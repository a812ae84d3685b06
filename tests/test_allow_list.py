"""The list of all that run-time patching may do, held against the files themselves, binutils and another decoder."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from bisect import bisect_right
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import capstone
import pytest

from tests.support.integrity import make_program, memory, validate_sorts
from tests.support.tool import staticcall, succeed, validate
from tests.support.vmlinux import RETURN0, Vmlinux

Json = dict[str, Any]

# What the preemption models lead to what; kernel/sched/core.c, sched_dynamic_update().
PREEMPTION = {
    "cond_resched": {"__cond_resched", RETURN0},
    "might_resched": {"__cond_resched", RETURN0},
    "preempt_schedule_notrace": {"preempt_schedule_notrace_thunk", RETURN0},
    "irqentry_exit_cond_resched": {"raw_irqentry_exit_cond_resched", RETURN0},
}


def _allow_list(path: Path, *options: str) -> Json:
    document = json.loads(succeed("allow-list", path, *options))
    assert isinstance(document, dict)
    validate_sorts(document, "allow-list")
    return document


@pytest.fixture(scope="module")
def kernel_list(kernel: Vmlinux) -> Json:
    return _allow_list(kernel.path)


def _targets(document: Json) -> dict[str, set[str]]:
    return {key["name"]: {target["name"] for target in key["targets"]} for key in document["keys"]}


def _contents(document: Json) -> dict[int, set[bytes]]:
    return {
        int(one["address"], 16): {bytes.fromhex(content["bytes"]) for content in one["contents"]}
        for one in document["ranges"]
    }


@pytest.mark.kernel
def test_every_site_and_every_trampoline_of_a_kernel_has_a_range(kernel: Vmlinux, kernel_list: Json) -> None:
    places = {(call.address, "site", len(call.code)) for call in kernel.calls}
    places |= {(key.trampoline, "trampoline", 5) for key in kernel.keys.values()}

    assert {(int(r["address"], 16), r["kind"], r["length"]) for r in kernel_list["ranges"]} == places
    assert len(kernel_list["ranges"]) == len(places)


@pytest.mark.kernel
def test_every_content_that_the_kernels_code_writes_is_listed(kernel: Vmlinux, kernel_list: Json) -> None:
    listed = _contents(kernel_list)
    # A variable and the padding of functions have names like thunks.
    own = (name for name in kernel.functions if name.endswith("_return_thunk") and not name.startswith("__pfx_"))
    kernel = kernel._replace(thunks=tuple(chain.from_iterable(kernel.symbols[name] for name in own)))
    assert kernel.thunks
    calls = (*kernel.calls, *map(kernel.trampoline_of, kernel.keys.values()))

    for call in calls:
        for func in (kernel.keys[call.key].func, 0, kernel.address(RETURN0)):
            assert kernel.codes_for(call, func) <= listed[call.address], hex(call.address)
        assert call.code in listed[call.address]


@pytest.mark.kernel
def test_every_content_is_one_instruction_that_does_what_is_said(kernel: Vmlinux, kernel_list: Json) -> None:
    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    for one in kernel_list["ranges"][::50]:
        for content in one["contents"]:
            code = bytes.fromhex(content["bytes"])
            assert len(code) == one["length"]
            _, size, mnemonic, operands = next(decoder.disasm_lite(code, int(one["address"], 16)))
            if content["state"] in ("function", "trampoline", "return_thunk"):
                assert size == len(code)
                assert mnemonic[0] == ("c" if "call" in mnemonic else "j")
                assert int(operands, 16) in kernel.symbols[content["target"]]
            else:
                assert mnemonic in ("ret", "xor", "nop", "call", "jmp", "je", "jne") or mnemonic[0] == "j"


@pytest.mark.kernel
def test_the_preemption_models_lead_where_the_kernels_source_says(kernel_list: Json) -> None:
    targets = _targets(kernel_list)

    # Live patching, where there is any, leads one of them to a function of its own.
    assert {key: targets[key] - {"klp_cond_resched"} for key in PREEMPTION} == PREEMPTION


def _read(kernel: Vmlinux, address: int, size: int) -> bytes:
    section = kernel.section(address)
    return memory(kernel.path, section.offset + address - section.address, size)


def _callers(kernel: Vmlinux, callee: int) -> set[range]:
    """The functions in whose bytes there is a call of another one, or a jump to it."""
    functions = sorted(chain.from_iterable(kernel.functions.values()), key=lambda function: function.start)
    starts = [function.start for function in functions]
    callers = set()
    for section in kernel.sections:
        if not section.name.endswith(".text"):
            continue
        code = _read(kernel, section.address, section.size)
        for found in re.finditer(rb"[\xe8\xe9](?=(....))", code, re.DOTALL):
            place = section.address + found.start()
            if place + 5 + int.from_bytes(found[1], "little", signed=True) == callee:
                callers.add(functions[bisect_right(starts, place) - 1])
    return callers


def _passed(kernel: Vmlinux, folder: Path) -> Iterator[tuple[int, int]]:
    """Key and function of every update whose arguments binutils' disassembly shows as constants."""
    update = kernel.address("__static_call_update")
    raw = folder / "function"
    for function in _callers(kernel, update):
        raw.write_bytes(_read(kernel, function.start, len(function)))
        arguments: dict[str, int] = {}
        for line in _disassembled(raw, function.start):
            if moved := re.search(r"\tmov +\$0x([0-9a-f]+),%(rdi|rdx)$", line):
                arguments[moved[2]] = int(moved[1], 16)
            elif line.endswith(f" {update:#x}"):
                if {"rdi", "rdx"} <= arguments.keys():
                    yield arguments["rdi"], arguments["rdx"]
                arguments.clear()
            elif re.search(r"\t(call|jmp|ret)|%(rdi|rdx|edi|edx)$", line):
                arguments.clear()


def _disassembled(raw: Path, address: int) -> list[str]:
    command = ["objdump", "-D", "-b", "binary", "-m", "i386:x86-64", "--no-show-raw-insn", f"--adjust-vma={address:#x}"]
    return subprocess.run([*command, raw], stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()


@pytest.mark.kernel
def test_every_function_that_the_kernel_passes_to_an_update_is_known(
    kernel: Vmlinux, kernel_list: Json, tmp_path: Path
) -> None:
    names = {key.address: key.name for key in kernel.keys.values()}
    known = {key["name"]: {int(t["address"], 16) for t in key["targets"]} for key in kernel_list["keys"]}
    found = {(names[key], function) for key, function in _passed(kernel, tmp_path) if key in names}

    assert len(found) > 20
    assert not {(key, hex(function)) for key, function in found if function not in known[key]}


@pytest.mark.kernel
def test_the_events_of_a_tracepoint_are_known(kernel: Vmlinux, kernel_list: Json) -> None:
    targets = _targets(kernel_list)
    events = [
        name.removeprefix("trace_event_raw_event_")
        for name in kernel.symbols
        if name.startswith("trace_event_raw_event_")
    ]
    own = [name for name in events if f"tp_func_{name}" in targets]

    assert len(own) > 100
    for name in own:
        expected = {
            f"{kind}{name}" for kind in ("__traceiter_", "trace_event_raw_event_", "perf_trace_", "__bpf_trace_")
        }
        assert expected & kernel.symbols.keys() <= targets[f"tp_func_{name}"]
    # Events of one class share their probes.
    assert "trace_event_raw_event_sched_wakeup_template" in targets["tp_func_sched_wakeup"]
    assert {"probe_sched_switch", "ftrace_graph_probe_sched_switch"} <= targets["tp_func_sched_switch"]


@pytest.mark.kernel
def test_the_hooks_of_security_modules_are_known(kernel_list: Json) -> None:
    hook = "lsm_static_call_file_open_"  # hooks are static calls since 6.12
    hooks = [names for key, names in _targets(kernel_list).items() if key.startswith(hook)]

    for functions in hooks:
        assert {"selinux_file_open", "apparmor_file_open", "tomoyo_file_open", "bpf_lsm_file_open"} <= functions
        assert "selinux_file_permission" not in functions
    assert bool(hooks) == ("lsm_static_call" in str(kernel_list["keys"]))


@pytest.mark.kernel
def test_a_wrappers_callers_are_asked(kernel_list: Json) -> None:
    # paravirt_set_sched_clock() hands its argument on.
    assert {"native_sched_clock", "kvm_sched_clock_read", "xen_sched_clock"} <= _targets(kernel_list)["pv_sched_clock"]


@pytest.mark.kernel
def test_what_is_freed_after_the_start_is_marked(kernel: Vmlinux, kernel_list: Json) -> None:
    initial = {int(r["address"], 16) for r in kernel_list["ranges"] if r["initial"]}

    assert initial == {call.address for call in kernel.calls if not call.stays}
    assert initial


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Here the one that all tests read and none changes."""
    return make_program(tmp_path_factory.mktemp("program"))


def test_a_programs_calls_stay_calls_to_what_its_updates_name(program: Path) -> None:
    document = _allow_list(program)
    targets = _targets(document)

    assert targets["scale"] == {"twice", "thrice", RETURN0}
    assert targets["chosen"] == {"twice", "thrice", "fourfold", RETURN0}
    assert targets["tell"] == {RETURN0}
    assert all(one["kind"] == "site" for one in document["ranges"])
    for one in document["ranges"]:
        states = {content["state"] for content in one["contents"]}
        assert {"trampoline", "null", "ret0"} <= states
        assert {content["bytes"][:2] for content in one["contents"]} <= {"e8", "e9"}


def test_more_targets_can_be_named(program: Path) -> None:
    targets = _targets(_allow_list(program, "--target", "scale=unlisted", "--target", "scale=fourfold"))

    assert targets["scale"] == {"twice", "thrice", "unlisted", "fourfold", RETURN0}


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("scael=twice", "did you mean scale?"),
        ("scale=thrise", "did you mean thrice?"),
        ("scale=nothing", "nothing"),
        ("scale", "KEY=FUNCTION"),
        ("=x", "KEY=FUNCTION"),
    ],
)
def test_a_target_that_is_none_is_a_usage_error(target: str, says: str, program: Path) -> None:
    outcome = staticcall("allow-list", program, "--target", target)

    assert (outcome.code, outcome.out) == (2, "")
    assert says in outcome.err
    assert outcome.err.count("\n") == 1


def test_an_object_has_no_addresses_yet(tmp_path: Path) -> None:
    outcome = staticcall("allow-list", make_program(tmp_path).with_name("program.o"))

    assert (outcome.code, outcome.out) == (3, "")
    assert "relocatable object" in outcome.err


def test_the_list_goes_to_a_file_and_never_over_its_input(tmp_path: Path) -> None:
    program = make_program(tmp_path)
    output = tmp_path / "allow.json"
    succeed("allow-list", program, "--output", output)
    outcome = staticcall("allow-list", program, "--output", program)

    validate(json.loads(output.read_text()), "allow-list")
    assert outcome.code == 2
    assert program.read_bytes()[:4] == b"\x7fELF"


@pytest.mark.kernel
def test_a_reader_that_goes_away_ends_the_list(vmlinux_612: Path) -> None:
    command = [sys.executable, "-m", "staticcall", "allow-list", str(vmlinux_612)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout
        assert running.stderr
        running.stdout.read(1)
        running.stdout.close()
        assert running.stderr.read() == b""
    assert running.returncode == 141
