"""What a call costs in each form, all forms in one process, and then what an update costs: see bench/updates.py.

The loops of all forms are the same instructions at the same places in a line, but for the call. They take turns of some
ten microseconds each, in an order that changes with every round, and what counts is the ratio within a round: the
machine's speed doubles and halves within seconds.
"""

from itertools import chain
from pathlib import Path
from statistics import median, quantiles
from types import MappingProxyType
from typing import Final, NamedTuple

from bench.measure import Figure, say
from bench.programs import (
    FIXTURES,
    assemble_object,
    command,
    compile_object,
    link_library,
    link_program,
    runtime_source,
    staticcall,
)
from bench.updates import update_figures

COPIES = 4
_COUNT = 10_000
_ROUNDS = 60
_NO_DIFFERENCE = 1.02


class Form(NamedTuple):
    """A form of call: its instructions, the key whose records its loops need, and what it is called in the list."""

    instructions: str
    key: str
    title: str


FORMS: Final = MappingProxyType(
    {
        "direct": Form("call add_one", "", "direct call"),
        "again": Form("call add_one", "", "direct call, once more"),
        "bound": Form("call __SCT__bound", "__SCK__bound", "static call, bound at build time"),
        "patched": Form("call __SCT__patched", "__SCK__patched", "static call, patched at run time"),
        "trampoline": Form("call __SCT__unpatched", "", "static call, by trampoline"),
        "pointer": Form("call *call_pointer(%rip)", "", "function pointer"),
        "retpoline": Form("mov call_pointer(%rip), %rax; call __x86_indirect_thunk_rax", "", "retpoline"),
        "plt": Form("call library_add_one@PLT", "", "PLT"),
        "ifunc": Form("call call_ifunc@PLT", "", "ifunc"),
    }
)

_RETPOLINE = ("-mindirect-branch=thunk", "-mindirect-branch-register")


def build_calls(folder: Path) -> tuple[Path, Path]:
    """Build the program with every form of call into a folder; gives it before and after its one key is bound.

    Raises `SystemExit` with the compiler's or the tool's words.
    """
    objects = [_assemble(folder, name, form) for name, form in FORMS.items()]
    objects += [
        compile_object(FIXTURES / "calls.c", folder),
        compile_object(FIXTURES / "callee.c", folder, "-DCALLEE=add_one"),
        compile_object(FIXTURES / "retpoline.c", folder, *_RETPOLINE),
        compile_object(runtime_source(), folder),
        link_library(FIXTURES / "callee.c", folder / "libcallee.so", "-DCALLEE=library_add_one"),
    ]
    program, bound = link_program(objects, folder / "calls"), folder / "calls.bound"
    staticcall("patch", program, "--bind", "--key", "bound", "-o", bound)
    return program, bound


def _assemble(folder: Path, name: str, form: Form) -> Path:
    """The loops of one form, with records where its calls are to be patched."""
    defined = [f"COPIES={COPIES}", f"FORM={name}", f"CALL={form.instructions}"]
    if form.key:
        defined.append(f"KEY={form.key}")
    return assemble_object(FIXTURES / "loop.S", folder / f"loop-{name}.o", defined, annotated=bool(form.key))


class Cost(NamedTuple):
    """Of one form in one process: ratio to a direct call (each copy of the loop), and cycles per call undisturbed."""

    ratios: tuple[float, ...]
    cycles: float


def measure_calls(program: Path, rounds: int, count: int) -> dict[str, Cost]:
    """Run the program once: so many rounds, in each of which every loop makes `count` calls.

    A cycle is one of the time stamp counter, which has a fixed rate; a call's share of the loop is included.
    """
    lines = command(program, str(rounds), str(count)).splitlines()
    rows = [[int(word) / count for word in line.split()] for line in lines]
    direct = list(FORMS).index("direct") * COPIES
    references = [median(row[direct : direct + COPIES]) for row in rows]
    result = {}
    for place, name in enumerate(FORMS):
        columns = [[row[place * COPIES + copy] for row in rows] for copy in range(COPIES)]
        ratios = (median(own / other for own, other in zip(column, references, strict=True)) for column in columns)
        result[name] = Cost(tuple(ratios), quantiles(chain(*columns), n=10)[0])
    return result


def call_figures(folder: Path, rounds: int) -> list[Figure]:
    """Measure and print; gives the figures. Each of the rounds is a process of its own."""
    say(f"cycles of a call with its share of the loop, in each of {rounds} processes")
    _, program = build_calls(folder)
    costs = [measure_calls(program, _ROUNDS, _COUNT) for _ in range(rounds)]
    ratios = {}
    for name, form in FORMS.items():
        own = [median(cost[name].ratios) for cost in costs]
        ratios[name] = median(own)
        copies = [ratio for cost in costs for ratio in cost[name].ratios]
        cycles = min(cost[name].cycles for cost in costs)
        say(
            f"{form.title:<34} {cycles:6.2f}   direct * {ratios[name]:6.3f}"
            f"  ({min(own):.3f} to {max(own):.3f}; copies {min(copies):.3f} to {max(copies):.3f})"
        )
    figures = [
        Figure(f"{FORMS[name].title} / direct call", ratios[name], _NO_DIFFERENCE) for name in ("bound", "patched")
    ]
    return figures + update_figures(folder, rounds)
