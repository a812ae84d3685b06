"""The modules of the kernels that are shipped: nothing is reported of them that is not so, and nothing is refused."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from tests.support import kernels
from tests.support.tool import staticcall, succeed
from tests.support.vmlinux import Vmlinux

pytestmark = pytest.mark.kernel

# Every fourth of some 1,100: their tables of alternatives, returns, calls and exceptions are all alike.
EACH = 4
RECORD = 8


@pytest.fixture(scope="module")
def modules(kernel: Vmlinux, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Modules of a kernel, unpacked where they are compressed."""
    folder = tmp_path_factory.mktemp("modules")
    found = sorted(kernels.image(kernel.path).rglob("*.ko*"))[::EACH]
    assert len(found) > 250
    return [path if path.suffix == ".ko" else _unpacked(path, folder) for path in found]


def _unpacked(path: Path, folder: Path) -> Path:
    out = folder / path.stem
    out.write_bytes(lzma.decompress(path.read_bytes()))
    return out


def _records(path: Path) -> int:
    with path.open("rb") as file:
        section = ELFFile(file).get_section_by_name(".static_call_sites")
        return section["sh_size"] // RECORD if section else 0


def test_no_module_has_a_site_that_its_kernel_rejects_or_another_table_claims(modules: list[Path]) -> None:
    said = succeed("report", "--scan", "--format", "jsonl", *modules).splitlines()
    images = [json.loads(line) for line in said]

    records = [sum(site["record"] is not None for site in image["sites"]) for image in images]
    assert records == [_records(path) for path in modules]
    assert sum(records) > 1000
    assert {one["code"] for image in images for one in image["findings"]} == {"no-static-calls"}


def test_no_module_is_refused_what_leaves_its_targets_as_they_are(modules: list[Path]) -> None:
    for path in [path for path in modules if _records(path)]:
        outcome = staticcall("patch", path, "--bind", "--policy", "kernel", "--strip-signature", "--dry-run")
        assert outcome.code == 0, outcome
