"""Would this kernel stop at these bytes? Report and verifier say so for every generation, each by its own reading.

What is expected is arch/x86/kernel/static_call.c of each version, written down by hand. For the kernels at hand the
oracle is better: their own code, run from the file on whatever bytes there are.
"""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from staticcall.abi.generations import Generation
from staticcall.locate.linked import locate
from staticcall.read.image import open_image
from staticcall.verify.decode import make_decoder
from staticcall.verify.layout import read_layout
from staticcall.verify.scene import read_scene
from staticcall.verify.source import opened
from tests.support import small_kernels
from tests.support.kernel_machine import KernelMachine, Outcome
from tests.support.tool import Json, report, staticcall, succeed
from tests.support.toolchain import symbols
from tests.support.vmlinux import RETURN0, Vmlinux

NOP, NOP_K8 = "0f1f440000", "6666666690"
DATA16, CS = "66664831c0", "2e2e2e31c0"
WARN, UNLOCK = "67480fb93a", "3e3ec60700"
CALLS = {
    *(NOP, NOP_K8, DATA16, CS, WARN, UNLOCK),
    *("e800000000", "2ee800000000", "e900000000", "eb00000000", "0f8400000000", "ff1500000000"),
    *("c3cccccccc", "cc00000000", "0f1f400090", "0000000000", "31c0909090", "2e2e2ee800"),
}
TAILS = {
    *("e900000000", "2ee900000000", "e800000000", "eb00000000", "ff2500000000"),
    *("c3cccccccc", "c390909090", "c300000000", "c200000000", "f3c3909090"),
    *("0f8000000000", "0f8400000000", "0f8f00000000", "0f90c09090", "0f7f000000", "7400909090"),
    *(NOP, CS, "cccccccccc", "0000000000"),
}
ALWAYS = {"e800000000"}, {"e900000000", "c3cccccccc", "c390909090", "c300000000"}
CONDITIONAL = {"0f8000000000", "0f8400000000", "0f8f00000000"}
UD1, SCT, PADDING = "0fb9cc", "534354", "0f1f00"
JMP, RET, PLAIN_RET, CALL, JCC, INDIRECT = "e9", "c3cc909090", "c390909090", "e8", "0f84", "ff25"


class Kernel(NamedTuple):
    """How to build one, and what its sources say: what is a call besides e8, jcc, the signature, BUG() or WARN()."""

    version: str
    defines: tuple[str, ...]
    calls: set[str]
    jcc: bool = False
    signature: str = ""
    fatal: bool = False


def _bytes(code: str) -> str:
    return ",".join(f"0x{byte:02x}" for byte in bytes.fromhex(code))


OLD = ("UNSIGNED", "NO_JCC", "NO_RETURN")
KERNELS = {
    "5.10": Kernel("5.10.0", OLD, set()),
    "5.10 stable": Kernel("5.10.223", ("NO_JCC", "NO_RETURN", f"TRAMP_UD={_bytes(UD1)}", "NOPS=ideal_nops"), set()),
    "5.12": Kernel("5.12.0", OLD, {DATA16}),
    "5.13": Kernel("5.13.0", OLD, {DATA16, NOP}),
    "5.15": Kernel("5.15.0", (*OLD, f"XOR={_bytes(DATA16)}"), {DATA16, NOP}),
    "5.15 stable": Kernel("5.15.160", ("NO_JCC", "NO_RETURN", f"XOR={_bytes(CS)}"), {CS, NOP}),
    "5.15 stable, no constants": Kernel("5.15.160", ("NO_JCC", "NO_RETURN"), {CS, NOP}),
    "5.16": Kernel("5.16.0", ("SCT", "NO_JCC", "NO_RETURN"), {DATA16, NOP}, False, SCT, True),
    "5.18": Kernel("5.18.0", ("SCT", "NO_JCC", "NO_RETURN"), {CS, NOP}, False, SCT, True),
    "5.18 stable": Kernel("5.18.19", ("NO_JCC", "NO_RETURN"), {CS, NOP}, False, UD1, True),
    "5.19": Kernel("5.19.0", ("NO_JCC", "NO_RETURN"), {CS, NOP}, False, UD1, True),
    "6.1": Kernel("6.1.0", ("NO_JCC", "NO_RETURN", "THUNK"), {CS, NOP}, False, UD1, True),
    "6.1 stable": Kernel("6.1.190", ("THUNK",), {CS, NOP}, True, UD1, True),
    "6.12": Kernel("6.12.0", (f"XOR={_bytes(CS)}", "THUNK"), {CS, NOP}, True, UD1, True),
    "6.19": Kernel("6.19.0", (), {CS, NOP, WARN}, True, UD1, True),
    "later": Kernel("7.9.0", (f"UNLOCK={_bytes(UNLOCK)}",), {CS, NOP, WARN, UNLOCK}, True, UD1, True),
    "a vendor's 5.14": Kernel(
        "5.14.0", ("MESSAGE", f"XOR={_bytes(CS)}", f"TRAMP_UD={_bytes(UD1)}"), {CS, NOP}, True, UD1, True
    ),
    "a vendor's 5.14, no constants": Kernel("5.14.0", ("MESSAGE", "SCT"), {DATA16, NOP}, True, SCT, True),
    "no symbol of the banner": Kernel("5.12.0", (*OLD, "NO_BANNER_SYMBOL"), {DATA16}),
    "no banner": Kernel(
        "0", ("NO_BANNER", "MESSAGE", f"XOR={_bytes(CS)}", "NOPS=x86_nops"), {CS, NOP}, True, UD1, True
    ),
    "no banner, no jcc": Kernel(
        "0", ("NO_BANNER", "MESSAGE", "NO_JCC", "NO_RETURN", f"XOR={_bytes(CS)}"), {CS, NOP}, False, UD1, True
    ),
    "no banner, SCT": Kernel(
        "0", ("NO_BANNER", "MESSAGE", "SCT", "NO_JCC", "NO_RETURN", f"XOR={_bytes(DATA16)}"),
        {DATA16, NOP}, False, SCT, True,
    ),
    "no banner, nops by processor": Kernel(
        "0", ("NO_BANNER", *OLD, "NOPS=ideal_nops", f"XOR={_bytes(DATA16)}"), {DATA16}
    ),
}  # fmt: skip


@pytest.fixture(params=KERNELS, ids=lambda name: name.replace(" ", "-"))
def sample(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Kernel, Path]:
    kernel = KERNELS[request.param]
    return kernel, small_kernels.build(tmp_path, kernel.version, *kernel.defines)


class Judged(NamedTuple):
    """What the report's finding about a place says, and the verifier's refusal; empty where they have no objection."""

    finding: str
    refusal: str


def _judge(original: Path, label: str, code: str, finding: str) -> Judged:
    """Ask both about a kernel with other bytes at a label."""
    changed = original.with_suffix(".changed")
    shutil.copyfile(original, changed)
    address = symbols(original)[label]
    _write(changed, address, bytes.fromhex(code))
    findings = [
        found["message"]
        for found in report("--fail-on", "never", changed)["findings"]
        if found["code"] in finding.split() and int(found["address"], 16) == address
    ]
    assert len(findings) <= 1
    outcome = staticcall("verify", original, changed)
    refused = outcome.code == 5 and "does not accept" in outcome.err
    if refused:
        assert code[:10] in outcome.err
        assert f"{address:#x}" in outcome.err
        assert "original" not in outcome.err
    return Judged(findings[0] if findings else "", outcome.err if refused else "")


def _write(path: Path, address: int, code: bytes) -> None:
    listing = subprocess.run(["readelf", "-lW", path], capture_output=True, text=True, check=True).stdout
    for row in (line.split() for line in listing.splitlines() if line.split()[:1] == ["LOAD"]):
        offset, start, size = int(row[1], 16), int(row[2], 16), int(row[4], 16)
        if start <= address < start + size:
            with path.open("r+b") as file:
                file.seek(offset + address - start)
                file.write(code)
            return
    raise AssertionError(f"{address:#x} is nowhere")


@pytest.mark.parametrize("tail", [False, True], ids=["calls", "tails"])
def test_report_and_verifier_object_to_what_this_generation_does_not_accept_at_a_site(
    sample: tuple[Kernel, Path], *, tail: bool
) -> None:
    kernel, path = sample
    label = "filled_tail" if tail else "filled_call"
    judged = {code: _judge(path, label, code, "unaccepted-bytes") for code in (TAILS if tail else CALLS)}

    accepted = ALWAYS[tail] | ((CONDITIONAL if kernel.jcc else set()) if tail else kernel.calls)
    assert {code for code, (finding, _) in judged.items() if not finding} == accepted
    assert {code for code, (_, refusal) in judged.items() if not refusal} == accepted
    verb = "BUG() at boot" if kernel.fatal else "WARN() at boot"
    assert all(verb in text for code, texts in judged.items() if code not in accepted for text in texts)


def test_report_and_verifier_object_to_what_this_generation_does_not_accept_in_a_trampoline(
    sample: tuple[Kernel, Path],
) -> None:
    kernel, path = sample
    bodies = {start: start.ljust(10, "0") for start in (JMP, RET, PLAIN_RET, CALL, JCC, INDIRECT)}
    codes = {
        body + signature: start in (JMP, RET, PLAIN_RET, *([JCC] if kernel.jcc else []))
        and (not kernel.signature or signature == kernel.signature)
        for start, body in bodies.items()
        for signature in (UD1, SCT, PADDING)
    }
    judged = {code: _judge(path, "__SCT__filled", code, "unaccepted-trampoline unknown-trampoline") for code in codes}

    assert {code for code, (_, refusal) in judged.items() if not refusal} == {code for code in codes if codes[code]}
    # A conditional one is accepted, and does not do what trampolines are for.
    expected = {code for code, good in codes.items() if good and not code.startswith(JCC)}
    assert {code for code, (finding, _) in judged.items() if not finding} == expected
    verb = f"{'BUG()' if kernel.fatal else 'WARN()'} when the static call is updated"
    assert all(verb in text for texts in judged.values() for text in texts if text)


def test_what_is_patched_is_accepted(sample: tuple[Kernel, Path], tmp_path: Path) -> None:
    _, path = sample
    out = tmp_path / "out"

    for options in (["--bind"], ["--set", "filled=other"], ["--set", "filled=RET0"]):
        for policy in ("lutomirski", "kernel"):
            succeed("patch", path, "-o", out, "--policy", policy, *options)
            found = {finding["code"] for finding in report("--fail-on", "never", out)["findings"]}
            assert not found & {"unaccepted-bytes", "unaccepted-trampoline", "unknown-trampoline"}
            out.unlink()


def test_a_nop_that_depends_on_the_processor_is_said_to(tmp_path: Path) -> None:
    path = small_kernels.build(tmp_path, "5.10.0", *OLD)

    for nop in (NOP, NOP_K8):
        judged = _judge(path, "filled_call", nop, "unaccepted-bytes")
        assert all("does not accept on every processor: WARN()" in text for text in judged)


def test_what_the_original_has_already_is_refused_and_said(tmp_path: Path) -> None:
    path = small_kernels.build(tmp_path, "6.12.0", "PREFIXED")
    out = tmp_path / "out"

    verified = staticcall("verify", path, path)
    assert verified.code == 5
    assert verified.err.count("\n") == 1
    assert "of filled holds 2ee8" in verified.err
    assert "BUG() at boot; the original has it already" in verified.err
    assert staticcall("patch", path, "--bind", "-o", out).code == 5
    assert not out.exists()


def test_one_odd_trampoline_is_no_evidence_of_how_the_others_are_signed(tmp_path: Path) -> None:
    path = small_kernels.build(tmp_path, "5.18.0", "SCT", "NO_JCC", "NO_RETURN")
    judged = _judge(path, "__SCT__filled", "e900000000" + UD1, "unaccepted-trampoline")

    assert all(f"not signed with {SCT}" in text for text in judged)


MODULE = """
        .section .modinfo, "a"
        .string "vermagic={vermagic} SMP mod_unload "
        .text
        .globl caller
        .type caller, @function
caller:
1:      .byte {site}
        .long 0
        ret
        .size caller, . - caller
        .section .static_call_sites, "aw"
        .long 1b - ., __SCK__x - .
        .section .note.GNU-stack, "", @progbits
"""


def _module(folder: Path, vermagic: str, site: str) -> Path:
    source, module = folder / "module.s", folder / f"module-{site}.ko"
    source.write_text(MODULE.format(vermagic=vermagic, site=site))
    subprocess.run(["gcc", "-c", "-o", module, source], check=True)
    return module


@pytest.mark.parametrize(
    ("vermagic", "outcome"),
    [("6.12.0", "BUG() when the module is loaded"), ("5.15.0", "WARN() when the module is loaded")],
)
def test_a_modules_sites_are_judged_by_the_kernel_that_it_was_built_for(
    tmp_path: Path, vermagic: str, outcome: str
) -> None:
    fine, wrong = (_module(tmp_path, vermagic, site) for site in ("0xe8", "0xe9"))
    assert _objections(report("--fail-on", "never", fine)) == {}
    (message,) = _objections(report("--fail-on", "never", wrong))
    assert outcome in message

    assert staticcall("verify", fine, fine).code == 0
    verified = staticcall("verify", wrong, wrong)
    assert verified.code == 5
    assert f"holds e900000000, which its kernel does not accept: {outcome}" in verified.err
    assert "the original has it already" in verified.err


@pytest.mark.parametrize("vermagic", ["unknown", "6", f"{'9' * 5000}.1"], ids=["word", "half", "huge"])
def test_an_object_that_does_not_say_for_which_kernel_it_is_is_judged_by_what_any_accepts(
    vermagic: str, tmp_path: Path
) -> None:
    for site, found in (("0xe8", 0), ("0xe9", 1)):
        path = _module(tmp_path, vermagic, site)
        assert len(_objections(report("--fail-on", "never", path))) == found
        assert staticcall("verify", path, path).code == 0


# What the kernels at hand say themselves.


def _located(path: Path) -> Generation:
    with open_image(path) as image:
        return locate(image).dialect.generation


def _verifiers(path: Path) -> Generation | None:
    with opened(path) as source:
        return read_scene(source, source, read_layout(source), make_decoder(), None).generation


@pytest.fixture(scope="module")
def machine(slim: Vmlinux) -> KernelMachine:
    return KernelMachine(slim)


def _codes() -> Iterator[bytes]:
    """Every first byte, every second one behind those that matter, and the known forms with each byte wrong."""
    chance = random.Random(1)  # noqa: S311 - the same bytes in every run, and nothing secret
    for first in range(256):
        yield bytes([first]) + chance.randbytes(5)
    for first in (0x0F, 0xC3, 0x2E, 0x66, 0xE8, 0xE9, 0xEB):
        for second in range(256):
            yield bytes([first, second]) + chance.randbytes(4)
    for code in sorted(CALLS | TAILS):
        whole = bytes.fromhex(code).ljust(6, b"\x90")
        yield whole
        for at in range(6):
            for bit in range(8):
                yield whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :]


@pytest.mark.kernel
def test_the_kernels_own_code_accepts_what_is_said_to_be_accepted(slim: Vmlinux, machine: KernelMachine) -> None:
    generation = _located(slim.path)
    assert generation == _verifiers(slim.path)
    function = slim.address("vprintk")

    def refused(outcome: Outcome) -> bool:
        assert outcome.stopped is bool(outcome.said)
        return outcome.stopped

    for tail in (False, True):
        codes = list(_codes())
        said = {code for code in codes if not generation.accepts(code[:5], tail=tail)}
        assert said == {code for code in codes if refused(machine.patch_site(code, func=function, tail=tail))}
        assert 0 < len(said) < len(codes)
    trampolines = [code[:5] + behind for code in _codes() for behind in _signatures()]
    said = {code for code in trampolines if not (generation.accepts(code, tail=True) and generation.signs(code))}
    assert said == {code for code in trampolines if refused(machine.patch_trampoline(code, func=function))}
    assert 0 < len(said) < len(trampolines)


def _signatures() -> list[bytes]:
    return [bytes.fromhex(code) for code in (UD1, SCT, PADDING, "0fb9cd", "00b9cc", "0f00cc")]


@pytest.mark.kernel
def test_nop_and_xor_are_those_that_the_kernels_own_code_writes(slim: Vmlinux, machine: KernelMachine) -> None:
    call = bytes.fromhex("e800000000")
    with open_image(slim.path) as image:
        dialect = locate(image).dialect

    assert machine.patch_site(call, func=0, tail=False).written == dialect.nop
    assert machine.patch_site(call, func=slim.address(RETURN0), tail=False).written == dialect.ret0
    for code in (dialect.nop, dialect.ret0):
        assert machine.patch_site(code, func=slim.address("vprintk"), tail=False).written[:1] == call[:1]


@pytest.mark.kernel
def test_a_packaged_kernel_is_accepted_as_it_is_and_as_it_is_patched(slim: Vmlinux, tmp_path: Path) -> None:
    out = tmp_path / "vmlinux"
    succeed("verify", slim.path, slim.path)
    for policy in ("lutomirski", "kernel"):
        succeed("patch", slim.path, "--bind", "--policy", policy, "-o", out)
        for path in (slim.path, out):
            assert _objections(report("--fail-on", "never", path)) == {}
        out.unlink()


def _objections(image: Json) -> Mapping[str, str]:
    codes = ("unaccepted-bytes", "unaccepted-trampoline", "unknown-trampoline")
    return {finding["message"]: finding["code"] for finding in image["findings"] if finding["code"] in codes}
