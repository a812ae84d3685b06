"""The lengths of instructions, against three others that know them: capstone, binutils, and the manual's text."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import capstone
import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given, settings
from hypothesis import strategies as st

from staticcall.abi.lengths import instruction_length
from tests.support.toolchain import TIMEOUT_SECONDS

# The same examples in every run.
repeatable = partial(settings, derandomize=True, deadline=None, database=None)

MOST_BYTES = 15
SWEPT_BYTES = 600_000
LISTED_BYTES = 120_000
RANDOM_INSTRUCTIONS = 100_000

ENGINE = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
LEGACY = bytes.fromhex("262e363e64656667f0f2f3")
REX = range(0x40, 0x50)
MAPS = tuple(map(bytes.fromhex, ("", "0f", "0f38", "0f3a", "c5", "c4", "62", "8f")))
# What objdump shows where no instruction starts, and what it shows together with the instruction that follows.
NOT_DECODED = re.compile(r"\(bad\)|\.byte|fwait|^rex|^(?:data16|addr32|repz?|repnz|lock|[c-gs]s)$")

# Each once: AVX-512 in all its maps, and what few compilers make.
RARE = """
    vaddps %zmm1, %zmm2, %zmm3
    vaddps 0x40(%rax), %zmm2, %zmm3{%k1}{z}
    vaddps 0x41(%rax,%rcx,4), %zmm2, %zmm3{%k1}{z}
    vaddps 4(%rip){1to16}, %zmm30, %zmm31
    vaddps 0x12345678(,%r9,8), %zmm2, %zmm3
    vaddps {rn-sae}, %zmm1, %zmm2, %zmm3
    vcmpps $3, %zmm1, %zmm2, %k3
    vcmpps $3, (%rsp), %zmm2, %k3
    vcvttps2udq (%r13), %zmm4
    vcvtps2uqq %ymm3, %zmm4
    vpshufd $0x1b, 0x80(%rbx), %zmm5
    vpsrld $7, %zmm1, %zmm16
    vpsrldq $7, (%rdi), %zmm16
    vpinsrw $3, %eax, %xmm17, %xmm18
    vpextrw $3, %xmm17, %eax
    vshufps $1, %zmm1, %zmm2, %zmm19
    vpermt2d (%rdi,%rsi), %zmm1, %zmm2
    vpternlogd $0x96, 0x40(%rsp), %zmm3, %zmm20
    vpcompressd %zmm4, 0x100(%rdi){%k2}
    vpgatherdd 8(%rax,%zmm3,4), %zmm4{%k1}
    vaddph %zmm1, %zmm2, %zmm3
    vcmpph $1, %zmm1, %zmm2, %k3
    vfmadd132ph 0x40(%rax), %zmm2, %zmm3
    vmovw 2(%rax), %xmm20
    kmovq %k1, %rax
    kshiftlw $3, %k1, %k2
    kortestb %k1, %k2
    vzeroupper
    vzeroall
    vmovaps 8(%rip), %ymm0
    vmovaps %xmm9, 0x1234(%r12)
    vpalignr $4, 1(%rax), %ymm2, %ymm3
    vblendvps %xmm1, (%rax), %xmm2, %xmm3
    vfmaddpd %xmm1, (%rax), %xmm2, %xmm3
    vpermil2pd $1, (%rax), %xmm1, %xmm2, %xmm3
    vpcmov %xmm1, 4(%rax), %xmm2, %xmm3
    vprotb $3, (%rax), %xmm3
    vfrczpd 0x100(%rip), %xmm3
    bextr $0x12345678, (%rax,%rbx), %ecx
    blcfill (%rax), %ecx
    llwpcb %rax
    lwpins $0x12345678, (%rax), %ecx
    pfadd 4(%rax), %mm1
    pswapd %mm2, %mm3
    extrq $1, $2, %xmm3
    extrq %xmm2, %xmm3
    insertq $1, $2, %xmm3, %xmm4
    insertq %xmm3, %xmm4
    movntsd %xmm1, (%rax)
    aeskeygenassist $1, (%rax), %xmm1
    sha1rnds4 $1, (%rax), %xmm1
    crc32w %ax, %ebx
    movbe (%rax), %r9w
    adox 8(%rip), %rax
    tdpbssd %tmm1, %tmm2, %tmm3
    tileloadd (%rax,%rbx), %tmm1
    mov %cr8, %rax
    mov %rax, %dr7
    movabs $0x1122334455667788, %r9
    movabs 0x1122334455667788, %eax
    movabs %rax, 0x1122334455667788
    addr32 mov %eax, 0x11223344
    mov $0x11223344, %eax
    mov $0x1122, %ax
    mov $0x11, %spl
    movq $0x11223344, 8(%r13)
    movw $0x1122, 8(%rip)
    enter $0x1122, $3
    testb $1, 4(%rip)
    testw $0x1122, (%rsp)
    testl $1, (%rax,%r13)
    testq $1, (%r13)
    notb 4(%rip)
    divw (%rsp)
    imul $0x1122, (%rax), %cx
    imul $0x112233, (%rax), %rcx
    imul $1, (%rax), %rcx
    pushw $0x1122
    push $0x112233
    push $1
    ret $8
    lretq $8
    xbegin .
    xabort $1
    endbr64
    notrack jmp *%rax
    rdsspq %rax
    incsspq %rax
    enqcmd (%rax), %rcx
    movdir64b (%eax), %ecx
    bnd jmp .
    xacquire lock addl $1, %fs:(%rax)
    rep movsq
    fsin
    fnstcw 4(%rip)
    vmread %rax, 4(%rip)
    vmcall
    invept (%rax), %rcx
    swapgs
    sysretq
    wrfsbase %rax
    nopw %cs:0x200(%rax,%rax)
    cs nopw 0x200(%rax,%rax)
    shld $3, %eax, 4(%rip)
    bt $3, (%rax,%rax)
    cmpxchg16b (%rdi)
    cmpps $2, (%rax), %xmm1
    pinsrw $1, (%rax), %mm1
    psllq $3, %xmm3
    int $0x80
    in $0x70, %al
    loop .
    jrcxz .
    ud2
    serialize
"""


class Oracle(NamedTuple):
    """What another decoder says of the first instruction of some bytes."""

    length: int
    mnemonic: str


def by_capstone(code: bytes) -> Oracle | None:
    for _, length, mnemonic, _ in ENGINE.disasm_lite(code, 0, 1):
        return Oracle(length, mnemonic)
    return None


def after_prefixes(code: bytes) -> tuple[bytes, bytes]:
    """The bytes before the opcode and those from it on."""
    opcode = next((i for i, byte in enumerate(code) if byte not in LEGACY and byte not in REX), len(code))
    return code[:opcode], code[opcode:]


def capstone_errs(code: bytes) -> str:
    """Where capstone's length is known not to be the processor's, with the reason; empty where it is."""
    prefixes, rest = after_prefixes(code)
    if rest[:2] in (b"\x0f\xb9", b"\x0f\xff"):
        return "ud0 and ud1 have modrm: SDM, UD"
    if rest[:1] == b"\x0f" and rest[1:2] and rest[1] & 0xF0 == 0x80 and 0x66 in prefixes:
        return "a near branch has 32 bits with 66, too: SDM, Jcc; by capstone only call and jmp"
    if rest[:1] in (b"\xc2", b"\xca") and 0x66 in prefixes:
        return "ret has 16 bits whatever REX.W says: SDM, RET"
    if rest[:2] == b"\x0f\x78":
        return "f2 0f 78 is insertq; vmread has no such prefix"
    return ""


def section_of(path: Path, name: str) -> tuple[int, bytes]:
    """The address and the first bytes of a section."""
    with path.open("rb") as file:
        section = ELFFile(file).get_section_by_name(name)
        assert section is not None
        file.seek(section["sh_offset"])
        return section["sh_addr"], file.read(min(section["sh_size"], SWEPT_BYTES))


def libc() -> Path:
    maps = Path("/proc/self/maps").read_text(encoding="ascii")
    found = re.search(r"(/\S+/libc\.so\.6)$", maps, re.MULTILINE)
    if found is None:
        pytest.skip("this python is not linked with glibc")
    return Path(found[1])


def python() -> Path:
    shared = Path(sysconfig.get_config_var("LIBDIR") or "/", sysconfig.get_config_var("LDLIBRARY") or "")
    return shared if shared.is_file() and ".so" in shared.name else Path(os.path.realpath(sys.executable))


def listed(path: Path, *options: str) -> Iterator[tuple[int, str]]:
    """Every address at which objdump lists an instruction, and the instruction."""
    command = ["objdump", "-dzw", "--no-show-raw-insn", "-j", ".text", *options, str(path)]
    out = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=True).stdout
    for line in out.splitlines():
        address, tab, text = line.partition(":\t")
        if tab:
            yield int(address, 16), text.strip()


def swept(code: bytes) -> int:
    """Compare all lengths of a linear sweep; returns how many there were."""
    engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    engine.skipdata = True  # vmlinux holds instructions that are newer than some capstones
    count = 0
    for at, length, mnemonic, _ in engine.disasm_lite(code[:-MOST_BYTES], 0):
        if mnemonic != ".byte" and not capstone_errs(code[at : at + length]):
            assert instruction_length(code, at) == length, (code[at : at + MOST_BYTES].hex(), mnemonic)
            count += 1
    return count


@pytest.mark.parametrize("file", [libc, python], ids=lambda file: file.__name__)
def test_lengths_in_a_program_are_those_of_capstone(file: object) -> None:
    assert callable(file)
    assert swept(section_of(file(), ".text")[1]) > 100_000


@pytest.mark.kernel
def test_lengths_in_the_kernel_are_those_of_capstone(vmlinux_612: Path) -> None:
    assert swept(section_of(vmlinux_612, ".text")[1]) > 100_000


@pytest.mark.parametrize("file", [libc, python], ids=lambda file: file.__name__)
def test_lengths_in_a_program_are_those_of_objdump(file: object) -> None:
    assert callable(file)
    start, code = section_of(file(), ".text")
    lines = list(listed(file(), f"--start-address={start}", f"--stop-address={start + LISTED_BYTES}"))
    count = 0
    for (address, text), (following, _) in pairwise(lines):
        if not NOT_DECODED.search(text) and code[address - start] != 0x9B:  # fwait is shown with what follows
            assert instruction_length(code, address - start) == following - address, text
            count += 1
    assert count > 20_000


def test_lengths_of_rare_instructions_are_those_of_the_assembler(tmp_path: Path) -> None:
    """The assembler's own listing of the places, by a label in front of each."""
    lines = [line.strip() for line in RARE.strip().splitlines()]
    source, output = tmp_path / "rare.s", tmp_path / "rare.o"
    body = "".join(f"at{i}: {line}\n" for i, line in enumerate([*lines, "nop"]))
    places = ", ".join(f"at{i} - at0" for i in range(len(lines) + 1))
    source.write_text(f'.text\n{body}\n.section .places, "a"\n.short {places}\n', encoding="ascii")
    subprocess.run(["as", source, "-o", output], timeout=TIMEOUT_SECONDS, check=True)
    code, table = (section_of(output, name)[1] for name in (".text", ".places"))
    starts = [int.from_bytes(table[i : i + 2], "little") for i in range(0, len(table), 2)]

    found = {line: instruction_length(code, at) for line, at in zip(lines, starts, strict=False)}

    assert found == {line: after - at for line, at, after in zip(lines, starts, starts[1:], strict=False)}


def encodings() -> st.SearchStrategy[bytes]:
    """Bytes that look like instructions: prefixes, a way into one of the maps, then anything."""
    prefix = st.lists(st.sampled_from([bytes([byte]) for byte in (*LEGACY, *REX)]), max_size=4).map(b"".join)
    rest = st.binary(min_size=16, max_size=16)
    return st.builds(lambda *parts: b"".join(parts), prefix, st.sampled_from(MAPS), rest)


def agrees(code: bytes) -> bool:
    """Compare with capstone; returns whether there was anything to compare."""
    oracle = by_capstone(code)
    if oracle is None or capstone_errs(code):
        return False
    assert instruction_length(code) == oracle.length, (code.hex(), oracle)
    return True


@repeatable(max_examples=1000)
@given(encodings())
def test_whatever_capstone_decodes_has_its_length(code: bytes) -> None:
    agrees(code)


def test_every_opcode_that_capstone_decodes_has_its_length() -> None:
    """Evenly over all maps and opcodes, which takes more examples than a search for small ones does."""
    source = random.Random(1)  # noqa: S311 - the same examples in every run
    compared = 0
    for _ in range(RANDOM_INSTRUCTIONS):
        prefixes = bytes(source.choices((*LEGACY, *REX), k=source.choice((0, 0, 0, 1, 1, 2, 3))))
        compared += agrees(prefixes + source.choice(MAPS) + source.randbytes(16))
    assert compared > RANDOM_INSTRUCTIONS // 5


@repeatable(max_examples=200)
@given(encodings(), st.binary(max_size=20), st.binary(max_size=20))
def test_a_length_depends_on_the_instruction_alone_and_needs_all_of_it(code: bytes, left: bytes, right: bytes) -> None:
    length = instruction_length(code)
    if length is None:
        assert all(instruction_length(code[:end]) is None for end in range(len(code)))
        return
    assert length <= MOST_BYTES
    whole = code[:length]
    assert instruction_length(left + whole + right, len(left)) == length
    assert all(instruction_length(left + whole[:end], len(left)) is None for end in range(length))


@pytest.mark.parametrize(
    ("code", "length"),
    [
        ("66 e8 44332211", 6),  # an AMD processor takes 16 bits
        ("66 0f84 44332211", 7),
        ("2e e8 44332211", 6),
        ("48 e8 44332211", 6),
        ("48 66 b8 2211", 5),  # REX is forgotten when another prefix follows
        ("66 48 b8 8877665544332211", 11),
        ("48 c7c0 44332211", 7),
        ("66 48 c7c0 44332211", 8),
        ("66 c7c0 2211", 5),
        ("0fb9 00", 3),  # ud1 (%rax), %eax
        ("0fb9 80 44332211", 7),
        ("0fff 05 44332211", 7),  # ud0
        ("0f0b", 2),
        ("0f20 40", 3),  # mov %cr0, %rax, whatever mod says
        ("0fa7 c0", 3),  # xstore
        ("66 2d 2211", 4),
        ("66 48 c2 2211", 5),
        ("67 a1 44332211", 6),
        ("48 a1 8877665544332211", 10),
        ("8f 00", 2),  # pop (%rax)
        ("f3 0f1e fa", 4),
        ("2e2e2e2e2e2e2e2e2e2e2e2e2e2e 90", 15),
    ],
)
def test_a_length_is_what_the_manual_says(code: str, length: int) -> None:
    whole = bytes.fromhex(code)

    assert len(whole) == length
    assert instruction_length(whole + bytes(20)) == length


@pytest.mark.parametrize(
    "code",
    [
        *(f"{opcode:02x}" for opcode in bytes.fromhex("06 07 0e 16 17 1e 1f 27 2f 37 3f 60 61 82 9a ce d4 d5 d6 ea")),
        *(f"0f{opcode:02x}" for opcode in bytes.fromhex("04 0a 0c 24 25 26 27 36 39 3b 3c 3d 3e 3f 7a 7b")),
        "c4e0 7858c0",  # VEX map 0
        "c5f8 05",  # no syscall with VEX
        "62f0 7c48 58c0",  # EVEX map 0
        "62f9 7c48 58c0",  # a reserved bit
        "8feb 7880c0",  # XOP map 11
        "2e" * 15 + "90",
    ],
)
def test_what_is_no_instruction_has_no_length(code: str) -> None:
    assert instruction_length(bytes.fromhex(code) + bytes(20)) is None


@pytest.mark.parametrize("condition", range(16))
def test_a_near_branch_has_32_bits_with_66_too(condition: int) -> None:
    assert instruction_length(bytes([0x66, 0x0F, 0x80 + condition]) + bytes(20)) == 7


def test_bytes_that_are_all_prefixes_take_no_time() -> None:
    assert instruction_length(b"\x66" * 50_000_000) is None
