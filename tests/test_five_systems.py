"""The five systems of the thread that static calls come from, each by its name, in one program.

`report` says what a policy would do; the runtime does it, in the running program. Where the sites then lead is read
from their bytes by another decoder, capstone.
"""

import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple, cast

import capstone
import pytest

from tests.support.objects import Objects, run
from tests.support.programs import COMPILERS
from tests.support.runtime import FIXTURES, INCLUDE, RUNTIME
from tests.support.tool import report, succeed
from tests.support.toolchain import Compiler

LINE = 64
BLOCK = 8
FORMS: Final = ("call", "prefixed_call", "jmp", "jcc")
# The runtime's protocol of each system, and the policy that says the same of a file. The kernel has no prefixed calls.
SYSTEMS: Final = MappingProxyType(
    {
        "out-of-line": ("out-of-line", None),
        "inline": ("emulate", "kernel"),
        "lutomirski": ("lutomirski", "lutomirski"),
        "torvalds": ("torvalds", "torvalds"),
        "call emulation": ("emulate", "kernel"),
        "rel32": ("rel32", "rel32"),
        "block8": ("block8", "block8"),
    }
)
PROTOCOLS: Final = sorted({protocol for protocol, _ in SYSTEMS.values()})


class Live(NamedTuple):
    """One site of the running program: its form, its offset in a line, and whether it goes past the trampoline."""

    form: str
    offset: int
    direct: bool


class Ran(NamedTuple):
    """What the program printed: `counts` are sites, direct, by trampoline, foreign."""

    protocol: str
    text: int
    counts: tuple[int, ...]
    sites: list[Live]


@pytest.fixture(scope="module")
def tools(made: Objects) -> Objects:
    """That there are compilers is what the other objects need as well."""
    return made


@pytest.fixture(scope="module", params=COMPILERS)
def program(request: pytest.FixtureRequest, tools: Objects, tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert isinstance(tools, Objects)
    compiler = cast(Compiler, request.param)
    folder = tmp_path_factory.mktemp("systems")
    objects = []
    for name in ("systems.c", "sites.S"):
        source = FIXTURES / "systems" / name
        made = folder / f"{source.stem}.o"
        run(compiler, "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-I", INCLUDE, "-c", source, "-o", made)
        succeed("annotate", "--section", "static_call_sites", "--in-place", made)
        objects.append(made)
    run(compiler, "-O2", "-I", INCLUDE, *objects, RUNTIME, "-o", folder / "systems")
    return folder / "systems"


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_call_arrives_and_the_sites_are_what_the_system_says(program: Path, system: str) -> None:
    protocol, _ = SYSTEMS[system]
    ran = _run(program, protocol)
    assert (ran.protocol, ran.text) == (protocol, 0)
    assert {(site.form, site.offset) for site in ran.sites} == {(form, n) for form in FORMS for n in range(LINE)}
    assert {site for site in ran.sites if site.direct != _is_direct(system, site)} == set()
    direct = sum(site.direct for site in ran.sites)
    assert ran.counts == (len(ran.sites), direct, len(ran.sites) - direct, 0)


@pytest.mark.parametrize("system", [name for name, (_, policy) in SYSTEMS.items() if policy])
def test_the_report_on_the_file_says_what_the_running_program_does(program: Path, system: str) -> None:
    protocol, policy = SYSTEMS[system]
    image = report(program, "--policy", str(policy))
    said = Counter(site["form"] for site in image["sites"] if site["verdict"] == "direct")
    done = Counter(
        {"jmp": "tail_jmp"}.get(site.form, site.form) for site in _run(program, protocol).sites if site.direct
    )
    if policy == "kernel":
        assert done.pop("prefixed_call") == LINE
    assert said == done


@pytest.mark.parametrize("last", PROTOCOLS)
def test_a_program_may_change_its_protocol_while_it_runs(program: Path, last: str) -> None:
    others = [protocol for protocol in PROTOCOLS if protocol != last]
    after, alone = _run(program, *others, last), _run(program, last)
    assert (after.protocol, after.counts, after.sites) == (last, alone.counts, alone.sites)


def _is_direct(system: str, site: Live) -> bool:
    """The five systems' own words, on the offsets of a 64-byte line."""
    prefix = site.form == "prefixed_call"
    rel32 = site.offset + prefix + 1
    call = site.form in {"call", "prefixed_call"}
    return {
        "out-of-line": False,
        "inline": True,
        "lutomirski": call and rel32 + 4 <= LINE,
        "torvalds": prefix,
        "call emulation": True,
        "rel32": call and rel32 % LINE + 4 <= LINE,
        "block8": call and rel32 % BLOCK + 4 <= BLOCK,
    }[system]


def _run(program: Path, *protocols: str) -> Ran:
    output = subprocess.run([program, *protocols], check=True, text=True, capture_output=True, timeout=60).stdout
    head, add, trampoline, *sites = (line.split() for line in output.splitlines())
    name, text, *counts = head
    ends = {int(add[1], 16): True, int(trampoline[1], 16): False}
    return Ran(name, int(text), tuple(map(int, counts)), list(_decode(sites, ends)))


def _decode(sites: list[list[str]], ends: dict[int, bool]) -> Iterator[Live]:
    decoder: Any = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    decoder.detail = True
    for address, code in sites:
        instruction = next(decoder.disasm(bytes.fromhex(code), int(address, 16)))
        mnemonic = instruction.mnemonic
        form = mnemonic if mnemonic in {"call", "jmp"} else "jcc"
        if code.startswith("2e"):
            form = f"prefixed_{form}"
        yield Live(form, instruction.address % LINE, ends[instruction.operands[0].imm])
