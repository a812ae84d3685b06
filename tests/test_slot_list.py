"""The list of what KASLR relocates, which stands behind a kernel's ELF file, follows the slots that go to or from NULL.

What the lists say is read here as the kernel reads them, from the end; where the slots are is readelf's word.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from tests.support import small_kernels
from tests.support.refusals import one_line
from tests.support.tool import Patch, patch, refused, staticcall, succeed
from tests.support.toolchain import bytes_at, symbols
from tests.test_moves import FUNCTION, KEPT, NULL, slots

SOURCE = small_kernels.SOURCE.with_name("claims.S")
KERNEL = ("--policy", "kernel")
UPPER_HALF = 0xFFFFFFFF << 32
# 32-bit slots, which no key has: any places of the kernel do.
NARROW, INVERSE = (0x81000010, 0x81000020), (0x81000030,)


def words(values: Iterable[int]) -> bytes:
    return b"".join(struct.pack("<I", value & 0xFFFFFFFF) for value in values)


def moving(folder: Path, *, inverse: bool = True, zeros: int = 1, name: str = "moving") -> Path:
    """A small kernel with a list behind it; before 6.14 with a part for inverse relocations."""
    plain = small_kernels.build(folder, "6.12.0", source=SOURCE)
    wide = sorted(slots(small_kernels.build(folder, "6.12.0", source=SOURCE, linking=KEPT)))
    parts = [0] * zeros + [*wide, 0, *([*INVERSE, 0] if inverse else []), *NARROW]
    kernel = folder / name
    kernel.write_bytes(plain.read_bytes() + words(parts))
    return kernel


def in_list(data: bytes, folder: Path, old: bytes, new: bytes) -> bytes:
    """A moving kernel with something else in its list."""
    size = small_kernels.build(folder, "6.12.0", source=SOURCE).stat().st_size
    assert old in data[size:]
    return data[:size] + data[size:].replace(old, new)


def walked(path: Path, *, inverse: bool = True) -> list[list[int]]:
    """The parts of a list as a decompressor walks them, from the end: 32-bit slots, inverse ones, 64-bit slots."""
    data = path.read_bytes()
    parts: list[list[int]] = []
    place = len(data)
    for _ in range(3 if inverse else 2):
        parts.append([])
        while True:
            place -= 4
            (word,) = struct.unpack_from("<I", data, place)
            if not word:
                break
            parts[-1].append(word)
    return parts


def wide(path: Path, *, inverse: bool = True) -> list[int]:
    """The 64-bit slots in the order of the file."""
    return [word | UPPER_HALF for word in reversed(walked(path, inverse=inverse)[-1])]


def slot_of(kernel: Path, key: str) -> int:
    return symbols(kernel)[f"__SCK__{key}"]


def relocation(changed: Patch) -> int:
    """The offset of the one edit of the list."""
    (edit,) = (edit for edit in changed.edits if edit["kind"] == "relocation")
    assert edit["key"] == ""
    assert edit["address"] is None
    return int(edit["file_offset"])


@pytest.mark.parametrize("inverse", [True, False])
def test_a_slot_that_becomes_null_leaves_the_list_which_keeps_its_size(tmp_path: Path, inverse: bool) -> None:
    kernel = moving(tmp_path, inverse=inverse)
    changed = patch(kernel, tmp_path / "out", *NULL, *KERNEL)
    slot = slot_of(kernel, "filled")

    assert wide(changed.output, inverse=inverse) == [at for at in wide(kernel, inverse=inverse) if at != slot]
    assert walked(changed.output, inverse=inverse)[:-1] == walked(kernel, inverse=inverse)[:-1]
    assert bytes_at(changed.output, slot, 8) == bytes(8)
    assert changed.output.stat().st_size == kernel.stat().st_size
    assert relocation(changed)
    succeed("verify", kernel, changed.output)
    changed.revert()


@pytest.mark.parametrize("inverse", [True, False])
def test_a_slot_that_gains_a_function_joins_the_list_in_its_place(tmp_path: Path, inverse: bool) -> None:
    kernel = moving(tmp_path, inverse=inverse)
    changed = patch(kernel, tmp_path / "out", *FUNCTION, *KERNEL)
    slot = slot_of(kernel, "empty")

    assert wide(changed.output, inverse=inverse) == sorted([*wide(kernel, inverse=inverse), slot])
    assert walked(changed.output, inverse=inverse)[:-1] == walked(kernel, inverse=inverse)[:-1]
    assert bytes_at(changed.output, slot, 8) == struct.pack("<Q", symbols(kernel)["function"])
    assert changed.output.stat().st_size == kernel.stat().st_size + 4
    succeed("verify", kernel, changed.output)
    changed.revert()


def test_a_zero_to_spare_in_front_makes_room_for_a_slot(tmp_path: Path) -> None:
    kernel = moving(tmp_path, zeros=2)
    changed = patch(kernel, tmp_path / "out", *FUNCTION, *KERNEL)

    assert slot_of(kernel, "empty") in wide(changed.output)
    assert changed.output.stat().st_size == kernel.stat().st_size
    succeed("verify", kernel, changed.output)
    changed.revert()


def test_one_slot_for_another_keeps_the_size(tmp_path: Path) -> None:
    kernel = moving(tmp_path)
    changed = patch(kernel, tmp_path / "out", *NULL, *FUNCTION, *KERNEL)
    expected = {*wide(kernel), slot_of(kernel, "empty")} - {slot_of(kernel, "filled")}

    assert wide(changed.output) == sorted(expected)
    assert changed.output.stat().st_size == kernel.stat().st_size
    succeed("verify", kernel, changed.output)
    changed.revert()


def test_a_list_that_a_patch_shortened_is_lengthened_again_by_the_next(tmp_path: Path) -> None:
    kernel = moving(tmp_path)
    emptied = patch(kernel, tmp_path / "emptied", *NULL, *KERNEL)
    filled = patch(emptied.output, tmp_path / "filled", "--set", "filled=function", *KERNEL)

    assert wide(filled.output) == wide(kernel)
    assert filled.output.stat().st_size == kernel.stat().st_size
    succeed("verify", emptied.output, filled.output)
    filled.revert()


def test_a_function_for_another_function_leaves_the_list_alone(tmp_path: Path) -> None:
    kernel = moving(tmp_path)
    changed = patch(kernel, tmp_path / "out", "--set", "filled=other", *KERNEL)

    assert {edit["kind"] for edit in changed.edits} >= {"key"}
    assert "relocation" not in {edit["kind"] for edit in changed.edits}


def test_the_list_in_the_file_follows_too_where_it_is_named(tmp_path: Path) -> None:
    kernel = moving(tmp_path)
    size = small_kernels.build(tmp_path, "6.12.0", source=SOURCE).stat().st_size
    (tmp_path / "vmlinux.relocs").write_bytes(kernel.read_bytes()[size:])
    changed = patch(kernel, tmp_path / "out", *FUNCTION, *KERNEL, "--relocs", tmp_path / "vmlinux.relocs")

    assert slot_of(kernel, "empty") in wide(changed.output)


def test_another_list_than_that_in_the_file_decides_and_is_not_changed(tmp_path: Path) -> None:
    kernel = moving(tmp_path)
    (tmp_path / "vmlinux.relocs").write_bytes(words([0, *wide(kernel)[:-1], 0, 0]))

    refused(
        "patch", kernel, "-o", tmp_path / "out", *FUNCTION, "--relocs", tmp_path / "vmlinux.relocs", code="kaslr-slot"
    )


def test_a_slot_that_is_in_the_list_twice_is_not_taken_out_of_it(tmp_path: Path) -> None:
    kernel = moving(tmp_path)
    twice = words([slot_of(kernel, "filled")])
    kernel.write_bytes(in_list(kernel.read_bytes(), tmp_path, twice, twice + twice))

    assert "more than once" in refused("patch", kernel, "-o", tmp_path / "out", *NULL, *KERNEL, code="kaslr-slot")


# The verifier


def refuted(kernel: Path, output: Path, data: bytes) -> str:
    output.write_bytes(data)
    outcome = staticcall("verify", kernel, output)
    assert outcome.code == 5, outcome
    return one_line(outcome)


@pytest.mark.parametrize("wish", [NULL, FUNCTION], ids=["emptied", "filled"])
def test_a_slot_without_its_list_is_not_proved(tmp_path: Path, wish: Sequence[str]) -> None:
    kernel = moving(tmp_path, zeros=2)
    changed = patch(kernel, tmp_path / "out", *wish, *KERNEL)
    at = relocation(changed)

    wrong = changed.output.read_bytes()[:at] + kernel.read_bytes()[at:]
    assert "relocations did not follow" in refuted(kernel, changed.output, wrong)


@pytest.mark.parametrize("wish", [NULL, FUNCTION], ids=["emptied", "filled"])
def test_a_list_without_its_slot_is_not_proved(tmp_path: Path, wish: Sequence[str]) -> None:
    kernel = moving(tmp_path, zeros=2)
    changed = patch(kernel, tmp_path / "out", *wish, *KERNEL)
    at = relocation(changed)

    wrong = kernel.read_bytes()[:at] + changed.output.read_bytes()[at:]
    assert "no key there went to or from NULL" in refuted(kernel, changed.output, wrong)


@pytest.mark.parametrize("word", [*NARROW, *INVERSE], ids=hex)
def test_another_part_of_the_list_may_not_differ(tmp_path: Path, word: int) -> None:
    kernel = moving(tmp_path)
    changed = patch(kernel, tmp_path / "out", *NULL, *KERNEL)

    wrong = in_list(changed.output.read_bytes(), tmp_path, words([word]), words([word + 4]))
    assert "not as a list of slots" in refuted(kernel, changed.output, wrong)


def test_a_list_with_a_slot_twice_is_not_proved(tmp_path: Path) -> None:
    kernel = moving(tmp_path, zeros=3)
    changed = patch(kernel, tmp_path / "out", *FUNCTION, *KERNEL)
    data, entry = changed.output.read_bytes(), words([slot_of(kernel, "empty")])
    at = data.index(entry, relocation(changed))
    first = at - 4
    while data[first : first + 4] != bytes(4):
        first -= 4

    wrong = data[:first] + data[first + 4 : at + 4] + entry + data[at + 4 :]
    assert "has a slot twice" in refuted(kernel, changed.output, wrong)


@pytest.mark.parametrize("inverse", [True, False])
@pytest.mark.parametrize("place", [0x1000, 0xF0000000], ids=hex)
def test_data_that_only_looks_like_a_list_follows_nothing(tmp_path: Path, inverse: bool, place: int) -> None:
    kernel = moving(tmp_path, inverse=inverse, zeros=2)
    changed = patch(kernel, tmp_path / "out", *FUNCTION, *KERNEL)
    other = moving(tmp_path, inverse=inverse, zeros=2, name="other")
    for path in (other, changed.output):
        path.write_bytes(path.read_bytes()[:-4] + words([place]))

    assert "not as a list of slots" in refuted(other, tmp_path / "wrong", changed.output.read_bytes())
    refused("patch", other, "-o", tmp_path / "none", *FUNCTION, *KERNEL, code="kaslr-slot")


def test_no_list_becomes_shorter(tmp_path: Path) -> None:
    kernel = moving(tmp_path, zeros=2)
    changed = patch(kernel, tmp_path / "out", *NULL, *KERNEL)
    data, size = changed.output.read_bytes(), small_kernels.build(tmp_path, "6.12.0", source=SOURCE).stat().st_size

    assert not any(data[size : size + 12])
    refuted(kernel, changed.output, data[:size] + data[size + 4 :])
    refuted(kernel, changed.output, data[:size] + data[size + 8 :])


@pytest.mark.parametrize("tail", [b"\0", bytes(4), b"more", bytes(4096)], ids=["byte", "word", "rubbish", "page"])
def test_nothing_else_may_become_longer(tmp_path: Path, tail: bytes) -> None:
    kernel = moving(tmp_path)
    changed = patch(kernel, tmp_path / "out", *FUNCTION, *KERNEL)

    refuted(kernel, changed.output, changed.output.read_bytes() + tail)
    refuted(kernel, changed.output, kernel.read_bytes() + tail)


def test_zeros_nobody_needs_make_no_longer_list(tmp_path: Path) -> None:
    kernel = moving(tmp_path)
    changed = patch(kernel, tmp_path / "out", *FUNCTION, *KERNEL)
    data, at = changed.output.read_bytes(), kernel.stat().st_size - 4 * (len(wide(kernel)) + 6)

    assert data[at : at + 4] == bytes(4)
    assert "longer than it has to be" in refuted(kernel, changed.output, data[:at] + bytes(4) + data[at:])
