"""The memory of programs against the allow-list, and what is no memory at all."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from tests.support import small_kernels
from tests.support.integrity import branch, check, core_of, make_program, memory, offset_in, one_line, only, poked
from tests.support.tool import staticcall

# Programs


@pytest.fixture(scope="module")
def gcore() -> None:
    if shutil.which("gcore") is None:
        # As in conftest: everything is there where every test is meant to run.
        (pytest.fail if os.environ.get("CI") else pytest.skip)("not installed: gdb")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Here the one that all tests read and none changes."""
    return make_program(tmp_path_factory.mktemp("program"))


@pytest.mark.usefixtures("gcore")
@pytest.mark.parametrize("pie", [True, False])
@pytest.mark.parametrize("protocol", ["emulate", "lutomirski", "out-of-line"])
def test_an_updated_program_is_legal(pie: bool, protocol: str, tmp_path: Path) -> None:
    program = make_program(tmp_path, pie=pie)
    core = core_of(program, tmp_path, protocol)
    document = check(program, core, "-v")

    assert document["findings"] == []
    assert len(document["ranges"]) == 5
    assert (int(document["core"]["slide"], 16) > 0) == pie
    if protocol == "out-of-line":
        # Pages that are as in their file are not part of a process's core.
        assert document["summary"]["sites"]["absent"] == 5
        return
    assert document["summary"]["sites"]["legal"] == 5
    states = {one["key"]: one["state"] for one in document["ranges"]}
    if protocol == "emulate":
        assert states == {"scale": "function", "chosen": "function", "tell": "null", "zero": "ret0"}


@pytest.mark.usefixtures("gcore")
def test_a_changed_program_is_found_out(program: Path, tmp_path: Path) -> None:
    core = core_of(program, tmp_path)
    whole = check(program, core, "-v")
    slide = int(whole["core"]["slide"], 16)
    site = next(int(one["address"], 16) for one in whole["ranges"] if one["key"] == "tell")
    names = subprocess.run(["nm", program], capture_output=True, text=True, check=True).stdout.splitlines()
    unlisted = next(int(line.split()[0], 16) for line in names if line.endswith(" unlisted"))
    offset = offset_in(core, site + slide)
    code = memory(core, offset, 5)

    with poked(core, offset, branch(code, site, unlisted)):
        one = only(check(program, core), site)
        assert (one["judgement"], int(one["destination"], 16)) == ("unknown", unlisted)
        assert check(program, core, "--target", "tell=unlisted")["findings"][0]["code"] == "not-as-key"
    with poked(core, offset, b"\x90"):
        assert only(check(program, core, code=1), site)["judgement"] == "corrupt"
    with poked(core, offset, b"\xcc"):
        document = check(program, core)
        assert (only(document, site)["int3"], document["findings"]) == (True, [])


# Cores that are none


def _core(segments: list[tuple[int, int, int, int]], body: bytes = b"", **header: int) -> bytes:
    """An ELF core: of each segment type, offset, address and size."""
    fields = {"type": 4, "machine": 62, "phnum": len(segments), "phentsize": 56, "phoff": 64} | header
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    head = struct.pack(
        "<16sHHIQQQIHHHHHH", ident, fields["type"], fields["machine"], 1, 0, fields["phoff"], 0, 0, 64,
        fields["phentsize"], fields["phnum"], 64, 0, 0,
    )  # fmt: skip
    table = b"".join(
        struct.pack("<IIQQQQQQ", kind, 4, offset, address, address, size, size, 0)
        for kind, offset, address, size in segments
    )
    return head + table + body


LOAD, NOTE = 1, 4
TOP = (1 << 64) - 1
BAD_CORES = {
    "empty": b"",
    "text": b"no core at all",
    "magic": b"\x7fELF",
    "header": _core([])[:40],
    "wrong-machine": _core([(LOAD, 0, 0x1000, 64)], machine=40),
    "no-core": _core([(LOAD, 0, 0x1000, 64)], type=2),
    "no-memory": _core([]),
    "no-memory-but-notes": _core([(NOTE, 64, 0, 0)]),
    "headers-cut": _core([(LOAD, 0, 0x1000, 64)], phnum=4000),
    "headers-nowhere": _core([(LOAD, 0, 0x1000, 64)], phoff=TOP),
    "header-size": _core([(LOAD, 0, 0x1000, 64)], phentsize=1),
    "memory-cut": _core([(LOAD, 0, 0x1000, 1 << 40)]),
    "memory-nowhere": _core([(LOAD, TOP, 0x1000, 64)]),
    "memory-past-the-end": _core([(LOAD, 0, TOP, 64)]),
    "notes-cut": _core([(NOTE, 0, 0, 1 << 40), (LOAD, 0, 0x1000, 64)]),
    "extended-count": _core([(LOAD, 0, 0x1000, 64)], phnum=0xFFFF),
    "other-memory": _core([(LOAD, 0, 0x555555554000, 64), (LOAD, 0, 0xFFFFFFFF81000000, 64)]),
    "overlapping": _core([(LOAD, 0, 0x1000, 64)] * 1000),
    "note-sizes": _core([(NOTE, 176, 0, 24), (LOAD, 0, 0x1000, 64)], struct.pack("<III", TOP >> 32, 5, 6) + bytes(12)),
    "file-note": _core(
        [(NOTE, 176, 0, 44), (LOAD, 0, 0x1000, 64)],
        struct.pack("<III8sQQ8s", 5, 24, 0x46494C45, b"CORE", TOP, TOP, bytes(8)),
    ),
    "many-notes": _core([(NOTE, 64, 0, 4096)] * 40000 + [(LOAD, 0, 0x1000, 64)]),
    "empty-notes": _core([(NOTE, 176, 0, 12 << 19), (LOAD, 0, 0x1000, 64)], bytes(12 << 19)),
    "offset-note": _core(
        [(NOTE, 176, 0, 72), (LOAD, 0, 0x1000, 64)],
        struct.pack("<III12s", 11, 40, 0, b"VMCOREINFO") + b"KERNELOFFSET=ffffffffffffffff\n".ljust(48, b"\0"),
    ),
}


@pytest.mark.parametrize("case", BAD_CORES)
def test_what_is_no_core_of_the_file_is_refused_in_one_line(case: str, program: Path, tmp_path: Path) -> None:
    core = tmp_path / "core"
    core.write_bytes(BAD_CORES[case])
    outcome = staticcall("check-memory", program, "--core", core)

    assert one_line(outcome) == 3
    assert str(core) in outcome.err


# Where an image is


def _loads(file: Path) -> list[tuple[int, int, int]]:
    """Offset, address and size of what a file loads."""
    with file.open("rb") as opened:
        segments = ELFFile(opened).iter_segments("PT_LOAD")
        return [(segment["p_offset"], segment["p_vaddr"], segment["p_filesz"]) for segment in segments]


def _holding(file: Path, areas: list[tuple[int, int, int]], notes: bytes = b"") -> bytes:
    """A core of parts of a file, each its offset there, the address and the size."""
    size = 64 + 56 * (len(areas) + 1)
    segments = [(NOTE, size, 0, len(notes))]
    segments += [(LOAD, size + len(notes) + offset, address & TOP, length) for offset, address, length in areas]
    return _core(segments, notes + file.read_bytes())


def _moved(file: Path, by: int) -> list[tuple[int, int, int]]:
    return [(offset, address + by, size) for offset, address, size in _loads(file)]


def _file_note(mappings: list[tuple[int, int, int, str]]) -> bytes:
    """NT_FILE of mappings: start, size, offset in the file in bytes, and path."""
    data = struct.pack("<QQ", len(mappings), 4096)
    data += b"".join(struct.pack("<QQQ", start, start + size, offset >> 12) for start, size, offset, _ in mappings)
    data += b"".join(path.encode() + b"\0" for *_, path in mappings)
    return struct.pack("<III8s", 5, len(data), 0x46494C45, b"CORE") + data + bytes(-len(data) % 4)


def _pages(areas: list[tuple[int, int, int]], path: Path) -> list[tuple[int, int, int, str]]:
    return [(address & -4096, size + 8191 & -4096, offset & -4096, str(path)) for offset, address, size in areas]


def test_areas_that_overlap_hide_nothing(tmp_path: Path) -> None:
    program, core = make_program(tmp_path, pie=False), tmp_path / "core"
    whole = _loads(program)
    core.write_bytes(_holding(program, [*whole, *((offset, address, 16) for offset, address, _ in whole)]))
    document = check(program, core)

    assert document["summary"]["sites"]["legal"] == 5
    core.write_bytes(_holding(program, [(offset, address + 16, 16) for offset, address, _ in whole] + whole))
    assert check(program, core)["summary"] == document["summary"]


def test_the_program_that_runs_is_looked_at_and_no_copy_of_its_file(program: Path, tmp_path: Path) -> None:
    core = tmp_path / "core"
    copy, running = 0x7F00_0000_0000, _moved(program, 0x7F00_1000_0000)
    size = program.stat().st_size
    note = _file_note([(copy, size + 4095 & -4096, 0, str(program)), *_pages(running, program)])
    core.write_bytes(_holding(program, [(0, copy, size), *running], note))
    document = check(program, core, "-v")

    assert int(document["core"]["slide"], 16) == 0x7F00_1000_0000
    assert document["summary"]["sites"]["legal"] == 5


def test_a_program_that_is_there_twice_is_not_guessed(program: Path, tmp_path: Path) -> None:
    core = tmp_path / "core"
    core.write_bytes(_holding(program, _moved(program, 0x10000000) + _moved(program, 0x20000000)))
    outcome = staticcall("check-memory", program, "--core", core)

    assert one_line(outcome) == 3
    assert "holds this image 2 times, at slides of 0x10000000, 0x20000000" in outcome.err
    assert check(program, core, "--slide", "20000000")["summary"]["sites"]["legal"] == 5


def test_a_program_can_lie_lower_than_it_was_linked(program: Path, tmp_path: Path) -> None:
    core = tmp_path / "core"
    offset, address, size = _loads(program)[1]
    core.write_bytes(_holding(program, [(0, 1 << 30, 64)], _file_note(_pages([(offset, 4096, size)], program))))

    assert int(check(program, core)["core"]["slide"], 16) == TOP + 1 + 4096 - (address & -4096)


@pytest.mark.parametrize(("name", "code"), [("program", 0), ("other", 3)])
def test_only_its_name_can_stand_for_a_program_whose_pages_are_left_out(
    name: str, code: int, program: Path, tmp_path: Path
) -> None:
    core = tmp_path / "core"
    areas = _moved(program, 0x7F00_0000_0000)
    core.write_bytes(_holding(program, [(0, 0x1000, 64)], _file_note(_pages(areas, tmp_path / name))))

    assert staticcall("check-memory", program, "--core", core).code == code


def test_another_program_of_the_name_is_refused(program: Path, tmp_path: Path) -> None:
    core = tmp_path / "core"
    other = make_program(_folder(tmp_path / "other"), flags=("-DOTHER", "-O1"))
    areas = _moved(other, 0x7F00_0000_0000)
    core.write_bytes(_holding(other, areas, _file_note(_pages(areas, other))))

    assert one_line(staticcall("check-memory", program, "--core", core)) == 3


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


MAP, COPY, OTHER_COPY = 0xFFFFFFFF80000000, 0x2000000, 0x6000000


def test_a_kernel_that_is_there_twice_is_not_guessed(tmp_path: Path) -> None:
    kernel, core = small_kernels.build(tmp_path, "6.12.0"), tmp_path / "core"
    core.write_bytes(_holding(kernel, _moved(kernel, COPY - MAP)))
    document = check(kernel, core)
    assert document["core"]["addresses"] == "physical"
    assert document["summary"]["sites"]["corrupt"] == 0

    core.write_bytes(_holding(kernel, _moved(kernel, COPY - MAP) + _moved(kernel, OTHER_COPY - MAP)))
    outcome = staticcall("check-memory", kernel, "--core", core)
    assert one_line(outcome) == 3
    assert f"holds this image 2 times, at physical slides of {COPY:#x}, {OTHER_COPY:#x}" in outcome.err
    for slide in (COPY, OTHER_COPY):
        assert check(kernel, core, "--slide", hex(slide))["summary"] == document["summary"]


def test_more_memory_than_can_be_searched_is_refused(tmp_path: Path) -> None:
    kernel, core = small_kernels.build(tmp_path, "6.12.0"), tmp_path / "core"
    core.write_bytes(_core([(LOAD, 4096, 0, (4 << 40) - 4096)]))
    os.truncate(core, 4 << 40)
    outcome = staticcall("check-memory", kernel, "--core", core)

    assert one_line(outcome) == 3
    assert "more physical memory than is searched" in outcome.err


@pytest.mark.usefixtures("gcore")
def test_a_core_cut_anywhere_is_refused(program: Path, tmp_path: Path) -> None:
    core = core_of(program, tmp_path)
    whole = core.read_bytes()
    for size in (len(whole) * 3 // 4, len(whole) // 2, 4096, 300, 64, 63, 16, 1):
        core.write_bytes(whole[:size])
        assert one_line(staticcall("check-memory", program, "--core", core)) == 3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--slide", "here"), "no number"),
        (("--slide", "1" * 17), "no address"),
        (("--slide", "-1"), "no address"),
        (("--target", "scale"), "KEY=FUNCTION"),
    ],
)
def test_options_that_cannot_be_meant(options: tuple[str, str], says: str, program: Path) -> None:
    outcome = staticcall("check-memory", program, "--core", program, *options)

    assert one_line(outcome) == 2
    assert says in outcome.err


def test_the_memory_has_to_be_there(program: Path, tmp_path: Path) -> None:

    assert one_line(staticcall("check-memory", program, "--core", tmp_path / "none")) == 3
    assert one_line(staticcall("check-memory", program, "--core", tmp_path)) == 3
    assert one_line(staticcall("check-memory", tmp_path / "none", "--core", program)) == 3
    assert one_line(staticcall("check-memory", program)) == 2
