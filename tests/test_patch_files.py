"""What patch and revert do with files: names, links, modes, and that nothing half-made is ever seen."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest

from staticcall.errors import VerificationError
from staticcall.verify import proof
from tests.support import calls_model, toolchain
from tests.support.programs import Builder
from tests.support.tool import (
    digest,
    patch,
    report_document,
    staticcall,
    staticcall_process,
    succeed,
    validate,
)
from tests.support.toolchain import Kind

FAST = ("--set", "alpha=alpha_fast")

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


def _fast(path: Path) -> bool:
    return toolchain.run(path) == calls_model.prints(alpha="alpha_fast")


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# ---- modes and owners ----


@pytest.mark.parametrize("mode", [0o755, 0o640, 0o400, 0o4755, 0o2750, 0o1711])
def test_the_mode_stays(mode: int, program: Path) -> None:
    program.chmod(mode)
    out = program.with_name("out")
    succeed("patch", program, "-o", out, "--edits", out.with_name("edits"), *FAST)
    assert stat.S_IMODE(out.stat().st_mode) == mode
    back = program.with_name("back")
    succeed("revert", out, "--edits", out.with_name("edits"), "-o", back)
    assert stat.S_IMODE(back.stat().st_mode) == mode
    succeed("patch", program, "--in-place", *FAST)
    assert stat.S_IMODE(program.stat().st_mode) == mode
    assert program.read_bytes() == out.read_bytes()


def test_other_outputs_have_the_usual_mode(program: Path) -> None:
    edits, report = program.with_name("edits"), program.with_name("report")
    mask = os.umask(0o027)
    try:
        succeed("patch", program, "--in-place", *FAST, "--edits", edits, "--report", report)
    finally:
        os.umask(mask)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (edits, report)} == {0o640}


@as_root
def test_a_file_replaced_keeps_its_owner(program: Path) -> None:
    os.chown(program, 12345, 23456)
    program.chmod(0o6755)
    succeed("patch", program, "--in-place", *FAST)
    status = program.stat()
    assert (status.st_uid, status.st_gid) == (12345, 23456)
    assert stat.S_IMODE(status.st_mode) == 0o6755


@as_root
def test_a_copy_lends_nobody_elses_rights(program: Path) -> None:
    os.chown(program, 12345, 23456)
    program.chmod(0o6755)
    succeed("patch", program, "-o", out := program.with_name("out"), *FAST)
    assert (out.stat().st_uid, stat.S_IMODE(out.stat().st_mode)) == (os.geteuid(), 0o755)


# ---- names and links ----


def test_a_link_stays_a_link(program: Path) -> None:
    link = program.with_name("link")
    link.symlink_to(program.name)
    succeed("patch", link, "--in-place", *FAST)
    assert link.readlink() == Path(program.name)
    assert not program.is_symlink()
    assert _fast(program)
    assert _names(program.parent) == {"program", "link"}


def test_an_output_goes_where_its_link_leads(program: Path) -> None:
    out, link = program.with_name("out"), program.with_name("link")
    link.symlink_to(out.name)
    for edits in (program.with_name("edits"), program.with_name("edits-link")):
        if edits.name.endswith("link"):
            edits.symlink_to("edits")
        succeed("patch", program, "-o", link, "--edits", edits, *FAST)
        assert link.is_symlink()
        assert _fast(out)
        validate(json.loads(edits.read_text()), "edits")
    assert program.with_name("edits-link").is_symlink()


def test_a_file_of_two_names_is_replaced_under_one(program: Path) -> None:
    """The other name may be a backup, or another package's file."""
    other, before = program.with_name("other"), digest(program)
    other.hardlink_to(program)
    succeed("patch", program, "--in-place", *FAST)
    assert digest(other) == before
    assert _fast(program)


def test_a_running_program_can_be_replaced(program: Path) -> None:
    number = program.stat().st_ino
    succeed("patch", program, "--in-place", *FAST)
    assert program.stat().st_ino != number


def test_the_input_is_no_output(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hard, soft, before = program.with_name("hard"), program.with_name("soft"), digest(program)
    hard.hardlink_to(program)
    soft.symlink_to(program)
    monkeypatch.chdir(program.parent)
    for out in (program, hard, soft, Path(program.name), Path("..") / program.parent.name / program.name):
        outcome = staticcall("patch", program, "-o", out, *FAST)
        assert (outcome.code, outcome.out) == (2, "")
        assert "--in-place" in outcome.err
    assert digest(program) == before
    assert _names(program.parent) == {"program", "hard", "soft"}


def test_no_two_outputs_share_a_name(program: Path) -> None:
    out, before = program.with_name("out"), digest(program)
    config = program.with_name("config.toml")
    config.write_text('[set]\nalpha = "alpha_fast"\n')
    wrong: tuple[tuple[str | Path, ...], ...] = (
        ("-o", out, "--edits", out),
        ("-o", out, "--edits", program),
        ("-o", out, "--report", program),
        ("-o", out, "--report", out),
        ("-o", out, "--edits", out.with_name("x"), "--report", out.with_name("x")),
        ("-o", out, "--config", config, "--edits", config),
        ("-o", config, "--config", config),
        ("--in-place", "--edits", program),
        ("--in-place", "--report", program),
    )
    for options in wrong:
        assert staticcall("patch", program, *options, *FAST).code == 2, options
    assert _names(program.parent) == {"program", "config.toml"}
    assert digest(program) == before
    made = patch(program, out, *FAST)
    assert staticcall("revert", out, "--edits", made.edits_file, "-o", made.edits_file).code == 2
    assert staticcall("revert", out, "--edits", made.edits_file, "-o", out).code == 2


def test_an_old_output_is_replaced_whole(program: Path) -> None:
    out = program.with_name("out")
    out.write_text("something older and much longer" * 10000)
    out.chmod(0o600)
    succeed("patch", program, "-o", out, *FAST)
    assert _fast(out)
    assert _names(program.parent) == {"program", "out"}


def test_outputs_that_cannot_be_are_told(program: Path) -> None:
    folder = program.parent
    (folder / "folder").mkdir()
    for out in (folder / "folder", folder / "missing" / "out", Path("/dev/null"), folder / ("n" * 300)):
        outcome = staticcall("patch", program, "-o", out, *FAST)
        assert (outcome.code, outcome.out) == (3, ""), out
        assert outcome.err.startswith(f"staticcall: {out}: cannot be written: "), outcome
    assert _names(folder) == {"program", "folder"}
    assert Path("/dev/null").is_char_device()


def test_without_its_edits_file_there_is_no_output(program: Path) -> None:
    out, edits = program.with_name("out"), program.with_name("missing") / "edits"
    outcome = staticcall("patch", program, "-o", out, "--edits", edits, *FAST)
    assert outcome.code == 3
    assert str(edits) in outcome.err
    assert _names(program.parent) == {"program"}


def test_edits_and_reports_may_go_to_a_pipe(program: Path) -> None:
    out = program.with_name("out")
    outcome = staticcall_process("patch", program, "-o", out, "--quiet", "--edits", "/dev/stdout", *FAST)
    assert (outcome.code, outcome.err) == (0, "")
    validate(json.loads(outcome.out), "edits")
    assert _names(program.parent) == {"program", "out"}


def test_names_may_be_any_bytes(program: Path) -> None:
    odd = program.rename(program.with_name("caf\udce9 \n"))
    out = odd.with_name("\udcff")
    outcome = staticcall_process("patch", odd, "-o", out, "--edits", odd.with_name("edits"), *FAST)
    assert (outcome.code, outcome.err) == (0, "")
    assert _fast(out)


# ---- nothing half-made ----


def test_a_dry_run_writes_nothing(program: Path) -> None:
    before = digest(program)
    edits, report = program.with_name("edits"), program.with_name("report")
    planned = succeed("patch", program, "--dry-run", *FAST, "--edits", edits, "--report", report)
    assert _names(program.parent) == {"program"}
    assert digest(program) == before
    done = succeed("patch", program, "-o", program.with_name("out"), *FAST)
    assert planned.splitlines()[0] == f"{program}: nothing is written (--dry-run)"
    assert planned.splitlines()[1:] == done.splitlines()[1:-1]


def test_what_is_not_proved_does_not_appear(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest(program)

    def prove(_: Path, patched: Path, *__: Any, **___: Any) -> None:
        assert patched.parent == program.parent
        assert patched.exists()
        raise VerificationError("something is not as it should be", path=patched, offset=16)

    monkeypatch.setattr(proof, "prove", prove)
    for options in (["-o", str(program.with_name("out"))], ["--in-place"]):
        outcome = staticcall("patch", program, *options, *FAST, "--edits", program.with_name("edits"))
        assert (outcome.code, outcome.out) == (5, "")
        assert outcome.err == (
            f"staticcall: {program}: something is not as it should be (offset 0x10), nothing was published\n"
        )
        assert _names(program.parent) == {"program"}
    assert digest(program) == before


def test_the_same_request_gives_the_same_bytes(program: Path) -> None:
    options = (*FAST, "--bind", "--policy", "kernel")
    one, two = (patch(program, program.with_name(name), *options) for name in ("one", "two"))
    assert one.output.read_bytes() == two.output.read_bytes()
    assert one.edits_file.read_bytes() == two.edits_file.read_bytes()
    assert one.out.splitlines()[1:] == two.out.splitlines()[1:]
    apart = staticcall_process("patch", program, "-o", three := program.with_name("three"), *options)
    assert apart.code == 0
    assert three.read_bytes() == one.output.read_bytes()


# ---- the edits file, the report, the words ----


@pytest.mark.parametrize(("kind", "relr"), [("exec", False), ("pie", False), ("pie", True)])
def test_edits_tell_what_they_are_and_where(kind: Kind, relr: bool, built: Builder, tmp_path: Path) -> None:
    original = built("calls", kind, relr=relr)
    names, sections = toolchain.symbols(original), toolchain.sections(original)
    made = patch(original, tmp_path / "out", *FAST, "--set", "zero=zero_plus")
    places = {(edit["kind"], int(edit["address"], 16)) for edit in made.edits}
    slot = "relocation" if kind == "pie" and not relr else "key"
    assert {place for place in places if place[0] != "site"} == {
        *(("trampoline", names[f"__SCT__{key}"]) for key in ("alpha", "zero")),
        *((slot, names[f"__SCK__{key}"]) for key in ("alpha", "zero")),
    }
    assert {address for what, address in places if what == "site"} <= {one.site for one in toolchain.records(original)}
    for edit in made.edits:
        address = int(edit["address"], 16)
        if edit["kind"] == "relocation":
            table = sections[".rela.dyn"]
            assert (edit["file_offset"] - table.offset) % 24 == 16
            assert table.offset <= edit["file_offset"] < table.offset + table.size
            assert toolchain.relative_addends(made.output)[address] == int.from_bytes(
                bytes.fromhex(edit["new"]), "little"
            )
        else:
            size = len(edit["new"]) // 2
            assert toolchain.bytes_at(original, address, size).hex() == edit["old"]
            assert toolchain.bytes_at(made.output, address, size).hex() == edit["new"]


def test_the_report_is_of_the_result(program: Path) -> None:
    out, report = program.with_name("out"), program.with_name("report")
    options = ("--policy", "rel32", "--line", "32")
    succeed("patch", program, "-o", out, *FAST, "--bind", "--key", "alpha", *options, "--report", report)
    document = json.loads(report.read_text())
    validate(document, "report")
    assert document == report_document(*options, out)
    assert len(document["images"][0]["keys"]) == 4


def test_what_is_done_is_told(program: Path) -> None:
    out = program.with_name("out")
    lines = succeed("patch", program, "-o", out, *FAST, "--bind").splitlines()
    size = program.stat().st_size
    assert re.fullmatch(r"  3 keys bound to .*, 4 sites direct", lines.pop(3))
    assert lines == [
        f"{program} -> {out}",
        "  alpha: alpha_plain -> alpha_fast, 5 sites direct, 4 by trampoline",
        "    types agree by DWARF: int alpha_fast(int)",
        "  11 edits, 59 bytes",
        f"verified: {size:,} bytes compared; changed sites: 6 call, 1 nop, 1 prefixed_call, 1 ret0;"
        " changed trampolines: 1; changed keys: 1",
    ]
    assert succeed("patch", program, "-o", out, *FAST, "--quiet") == ""
    edits = [line for line in succeed("patch", program, "--dry-run", *FAST, "-v").splitlines() if " -> " in line]
    assert (
        len([line for line in edits if re.fullmatch(r"  0x[0-9a-f]{8} [0-9a-f]+ -> [0-9a-f]+ [a-z]+ alpha", line)]) == 7
    )
    made = patch(program, out, *FAST)
    back = program.with_name("back")
    assert succeed("revert", out, "--edits", made.edits_file, "-o", back).splitlines() == [
        f"{out} -> {back}",
        "  7 edits taken back, the SHA-256 is the original's",
    ]
