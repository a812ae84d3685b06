"""Where the kernel puts the code of modules: the running kernel says it, and reports foretell it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from staticcall.abi.module_layout import PAGE, CodeSection, places_in_page
from tests.support import guest, kernels
from tests.support.module_trees import code_sections, module_information, with_dependencies
from tests.support.tool import report
from tests.support.vmlinux import LINE, Vmlinux

pytestmark = [pytest.mark.kernel, pytest.mark.boot, pytest.mark.usefixtures("guest_tools")]

# They load on any machine. Between them they have code for init, exit, unlikely paths, places without instrumentation,
# static calls and replacements.
NAMES = ("kvm", "dm-mod", "loop", "xfs", "sunrpc", "overlay", "nf_conntrack", "bonding")
SECTIONS = {".text", ".init.text", ".exit.text", ".noinstr.text", ".static_call.text", ".altinstr_replacement"}
_LOAD = """\
insmod /files/{name}.ko && grep -r 0x /sys/module/{name}/sections
"""


@pytest.fixture(scope="module")
def modules(kernel: Vmlinux, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return with_dependencies(kernels.image(kernel.path), NAMES, tmp_path_factory.mktemp("modules"))


@pytest.fixture(scope="module")
def loaded(
    kernel: Vmlinux, modules: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Mapping[str, int]]:
    """The address of each section of each module in a running kernel."""
    booted = guest.boot(
        kernel.path,
        tmp_path_factory.mktemp("guest"),
        files={f"{name}.ko": path for name, path in modules.items()},
        commands=[_LOAD.format(name=name) for name in modules],
    )
    lines = [text.splitlines() for text in booted.outputs]
    return {
        name: {Path(file).name: int(address, 16) for file, address in (line.split(":") for line in own)}
        for name, own in zip(modules, lines, strict=True)
    }


def test_every_section_of_code_lies_where_in_a_page_it_was_foretold(
    modules: Mapping[str, Path], loaded: Mapping[str, Mapping[str, int]]
) -> None:
    seen: set[str] = set()
    for name, module in modules.items():
        sections = code_sections(module)
        places = places_in_page([CodeSection(*one) for one in sections], module_information(module, "vermagic"))
        # The kernel does not show sections without contents.
        shown = [(number, section) for number, section, _, size, _ in sections if size]
        assert [(one, loaded[name][one] % PAGE) for _, one in shown] == [(one, places[number]) for number, one in shown]
        seen.update(section for _, section in shown)
    assert seen >= SECTIONS


def test_whether_a_site_crosses_a_line_is_foretold(
    modules: Mapping[str, Path], loaded: Mapping[str, Mapping[str, int]]
) -> None:
    foretold: list[bool] = []
    for name, module in modules.items():
        for site in report(module)["sites"]:
            start = loaded[name][site["section"]] + site["offset"]
            assert site["placement"] == "predicted"
            assert site["crosses_line"] is (start // LINE != (start + site["length"] - 1) // LINE)
            assert site["address"] is None
            foretold.append(site["crosses_line"])
    assert len(foretold) > 1000
    assert set(foretold) == {False, True}
