"""The module of `examples/kbuild`, made by Debian's Kbuild: its table is the one that the kernel's objtool makes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support import guest, modules
from tests.support.examples import Project, need
from tests.support.modules import TABLE, Development, Record, Relocation
from tests.support.tool import Outcome

pytestmark = pytest.mark.kernel

_MODULE = "static_call_example"


class Built(NamedTuple):
    """What became of the module in one tree; `module` is the one made last."""

    module: Path
    table: list[Relocation]
    records: list[Record]
    edited: list[Record]
    remade: set[str]
    gate: Outcome
    seconds: float


def _options(kernel: Development) -> list[str]:
    return [
        f"KDIR={kernel.headers}",
        f"KERNEL_MAKE=make -C {kernel.headers} -f {kernel.makefile}",
        "CONFIG_DEBUG_INFO_BTF_MODULES=",
    ]


def _times(project: Project) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in project.folder.glob("*.[ko]*") if path.suffix != ".c"}


def _build(kernel: Development, folder: Path) -> Built:
    project = Project("kbuild", folder)
    seconds = project.seconds("make", *_options(kernel))
    module = project.folder / f"{_MODULE}.ko"
    table, found = modules.relocations(module).get(TABLE, []), modules.records(module)
    before = _times(project)
    gate = project.outcome("make", "check", *_options(kernel))
    project.edit("work.c", "static_call(example_scale)(number) + 1", "static_call(example_scale)(number + 1) + 2")
    project.run("make", *_options(kernel))
    remade = {name for name, when in _times(project).items() if before.get(name) != when}
    return Built(module, table, found, modules.records(module), remade, gate, seconds)


@pytest.fixture(scope="module")
def built(development: Development, tmp_path_factory: pytest.TempPathFactory) -> Built:
    need("make")
    return _build(development, tmp_path_factory.mktemp("kbuild"))


class Control(NamedTuple):
    """The module as Kbuild makes it by itself, and the gate's word on one that nobody annotated."""

    table: list[Relocation]
    seconds: float
    gate: Outcome


@pytest.fixture(scope="module")
def control(development: Development, tmp_path_factory: pytest.TempPathFactory) -> Control:
    need("make")
    project = Project("kbuild", tmp_path_factory.mktemp("control"))
    seconds = project.seconds("make", *_options(development), "STATICCALL_KBUILD=")
    table = modules.relocations(project.folder / f"{_MODULE}.ko")[TABLE]
    project.run("make", "clean", *_options(development))
    project.run("make", *_options(development), STATICCALL_IDLE="1")
    gate = project.outcome("make", "check", *_options(development))
    return Control(table, seconds, gate)


def test_the_module_has_the_records_that_objtool_makes(built: Built, control: Control) -> None:
    assert len(built.records) == 2
    assert built.table == control.table
    assert {record.symbol for record in built.records} == {"__SCK__example_scale"}
    assert {record.opcode for record in built.records} == {0xE8}


def test_a_changed_source_alone_is_compiled_and_the_module_annotated_again(built: Built) -> None:
    assert "work.o" in built.remade
    assert "main.o" not in built.remade
    assert f"{_MODULE}.ko" in built.remade
    assert [(record.symbol, record.opcode) for record in built.edited] == [("__SCK__example_scale", 0xE8)] * 2


@pytest.mark.boot
@pytest.mark.usefixtures("guest_tools")
def test_the_module_calls_and_updates_in_a_running_kernel(
    built: Built, development: Development, tmp_path: Path
) -> None:
    commands = ["insmod /files/example.ko", f"rmmod {_MODULE}", f"dmesg | grep -o '{_MODULE}: [0-9].*'"]
    booted = guest.boot(development.vmlinux, tmp_path, files={"example.ko": built.module}, commands=commands)
    said = booted.outputs[-1].split()
    assert [int(word) for word in said if word.isdigit()] == [2 * 15 + 2, 3 * 15 + 2, 3 * 14]
    assert booted.problems == ()


def test_the_gate_lets_the_module_through(built: Built) -> None:
    assert built.gate.code == 0, built.gate


def test_the_gate_stops_a_module_without_a_table(control: Control) -> None:
    assert control.gate.code != 0
    assert "no table of sites" in control.gate.out


def test_the_cost_is_recorded(built: Built, control: Control, record_property: Callable[[str, object], None]) -> None:
    record_property("kbuild_seconds", round(built.seconds, 3))
    record_property("kbuild_seconds_without", round(control.seconds, 3))
    assert built.seconds < control.seconds + 60
