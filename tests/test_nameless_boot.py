"""A kernel that was patched without any names runs, with the code in memory that is in its file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import nameless
from tests.support.booting import boot_and_compare, incoherent, places_of
from tests.support.elf_edit import Elf
from tests.support.tool import patch
from tests.support.vmlinux import RETURN0, Vmlinux

pytestmark = [pytest.mark.kernel, pytest.mark.boot, pytest.mark.usefixtures("guest_tools")]


def elsewhere(kernel: Vmlinux, image: Path) -> Vmlinux:
    """The same kernel, as an image has it whose sections are at other places of the file."""
    elf = Elf(image.read_bytes())
    return kernel._replace(
        sections=tuple(section._replace(offset=elf.section(section.name)["offset"]) for section in kernel.sections)
    )


@pytest.mark.parametrize("kernel", ["612"], indirect=True)
def test_a_kernel_bound_without_names_boots(kernel: Vmlinux, unpacked: Path, tmp_path: Path) -> None:
    bare = nameless.take_names(kernel, unpacked, tmp_path / "bare")
    named = elsewhere(kernel, bare)
    return0 = kernel.address(RETURN0)
    key = next(key for key in kernel.keys.values() if key.name == "amd_pstate_enable")
    done = patch(bare, tmp_path / "vmlinux", "--bind", "--set", f"{key.address:#x}=RET0")
    places = places_of(named, done.output, named.keys)
    booted = boot_and_compare(done.output, tmp_path, places)
    memory = {**places, **booted.memory}
    assert incoherent(named, memory) == []
    assert memory[key.address] == return0.to_bytes(8, "little")
    updated = {key.name for key in kernel.keys.values() if key.address in booted.memory}
    sites = {int(edit["address"], 16) for edit in done.edits if edit["kind"] == "site"}
    bound = {call.address for call in kernel.calls if call.key not in updated} & sites & places.keys()
    assert len(bound) > len(kernel.calls) / 5
    assert booted.differing(bound) == ()
