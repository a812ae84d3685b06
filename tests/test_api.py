"""The Python API tells what the command line tells, as values."""

from __future__ import annotations

import json
import lzma
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import staticcall
import staticcall.api
from staticcall.model.sites import Answer
from tests.support import toolchain
from tests.support.objects import Objects
from tests.support.programs import Builder
from tests.support.tool import POLICIES, Json, succeed
from tests.support.tool import staticcall as tool

FORMATS = ("text", "json", "jsonl", "html", "sarif", "csv", "markdown")
PROGRAMS: tuple[tuple[str, toolchain.Kind], ...] = (
    ("calls", "pie"),
    ("forms", "exec"),
    ("generations", "shared"),
    ("broken/unrecorded", "exec"),
)


def _printed(*arguments: str | Path) -> str:
    """What `staticcall report` prints; findings are no failure here."""
    outcome = tool("report", "--fail-on", "never", *arguments)
    assert (outcome.code, outcome.err) == (0, "")
    return outcome.out


# ---- the same as the command line ----


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("program", PROGRAMS, ids="-".join)
def test_the_json_of_a_report_is_what_the_command_prints(
    program: tuple[str, toolchain.Kind], policy: str, built: Builder
) -> None:
    path = built(*program)
    with staticcall.open(path) as file:
        report = file.report(policy=staticcall.PolicyName(policy), line=32, scan=True, hashed=True)

    command = ("--format", "json", "--policy", policy, "--line", "32", "--scan", "--hash", path)
    assert report.to_json() == report.render("json") == _printed(*command)


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_is_what_the_command_prints(form: str, demo: Path) -> None:
    with staticcall.open(demo) as file:
        report = file.report()

    assert report.render(staticcall.Format(form)) == _printed("--format", form, demo)


def test_objects_and_members_are_told_as_the_command_does(made: Objects, tmp_path: Path) -> None:
    for name in ("one.o", "two.o"):
        staticcall.annotate(made("calls"), tmp_path / name)
    library = tmp_path / "lib.a"
    subprocess.run(["ar", "rcs", library, tmp_path / "one.o", tmp_path / "two.o"], check=True)

    assert list(staticcall.members(library)) == ["one.o", "two.o"]
    with staticcall.open(library, "two.o") as file:
        report = file.report()
    with staticcall.open(f"{library}(two.o)") as file:
        assert file.report() == report
    assert report.to_json() == _printed("--format", "json", f"{library}(two.o)")
    assert report.elf_type == "REL"
    assert report.container == ("archive",)
    assert {site.address for site in report.sites} == {None}
    assert {home.address for home in report.trampolines} == {None}


def test_the_values_are_those_of_the_json(built: Builder) -> None:
    with staticcall.open(built("forms", "pie")) as file:
        report = file.report(policy="rel32")
    (image,) = json.loads(report.to_json())["images"]

    assert [_as_json(site) for site in report.sites] == image["sites"]
    assert [(key.name, f"{key.address:#x}", key.func, key.trampoline, key.sites) for key in report.keys] == [
        (key["name"], key["address"], key["func"], key["trampoline"], key["sites"]) for key in image["keys"]
    ]
    assert [finding.code for finding in report.findings] == [finding["code"] for finding in image["findings"]]
    counts = report.summary
    assert (counts.sites, counts.forms, counts.reasons) == tuple(
        image["summary"][name] for name in ("sites", "forms", "reasons")
    )
    assert counts.direct == sum(key.direct for key in report.keys)
    assert counts.direct == sum(site.verdict is staticcall.Verdict.DIRECT for site in report.sites)


def _as_json(site: staticcall.Site) -> Json:
    """A site as the JSON report has it, put together from the value."""
    plain = ("record", "section", "offset", "file_offset", "function", "key", "trampoline", "tail", "length")
    told: Json = {name: getattr(site, name) for name in (*plain, "destination", "crosses_line", "reason")}
    told |= {"address": f"{site.address:#x}", "bytes": site.code.hex(), "sources": list(site.sources)}
    return told | {"form": site.form.value, "verdict": site.verdict.value}


def test_trampolines_are_where_nm_finds_them(demo: Path) -> None:
    with staticcall.open(demo) as file:
        homes = file.report().trampolines
    symbols = toolchain.symbols(demo)

    assert {home.name: home.address for home in homes} == {
        name: symbols[f"__SCT__{name}"] for name in ("checksum", "log")
    }
    assert {home.name: home.destination for home in homes} == {"checksum": "checksum_plain", "log": None}


def test_a_glob_selects_keys_sites_and_trampolines(demo: Path) -> None:
    with staticcall.open(demo) as file:
        report = file.report(keys="check*")

    assert [key.name for key in report.keys] == ["checksum"]
    assert [home.name for home in report.trampolines] == ["checksum"]
    assert {site.key for site in report.sites} == {"checksum"}


def test_source_lines_are_those_that_addr2line_knows(demo: Path) -> None:
    with staticcall.open(demo) as file:
        plain, lined = file.report().sites, file.report(lines=True).sites

    assert {site.source_line for site in plain} == {None}
    for site in lined:
        told = subprocess.run(["addr2line", "-e", demo, site.where], capture_output=True, text=True, check=True).stdout
        path, _, number = told.split(" ")[0].strip().rpartition(":")
        assert site.source_line is not None
        assert (Path(site.source_line.path).name, site.source_line.line) == (Path(path).name, int(number))


def test_annotate_writes_what_the_command_writes(made: Objects, tmp_path: Path) -> None:
    done = staticcall.annotate(made("calls"), tmp_path / "api.o")
    succeed("annotate", made("calls"), "-o", tmp_path / "cli.o")

    assert (tmp_path / "api.o").read_bytes() == (tmp_path / "cli.o").read_bytes()
    assert done.message == f"{done.records} records"
    assert done.changed
    again = staticcall.annotate(tmp_path / "api.o", in_place=True)
    assert (again.records, again.changed) == (0, False)


def test_apply_writes_what_the_command_writes(demo: Path) -> None:
    home = demo.parent
    with staticcall.open(demo) as file:
        plan = file.plan({"checksum": "checksum_fast", "log": "log_print"}, build_id="seed:x")
    plan.apply(home / "api", edits_file=home / "api.json", report_file=home / "api.report.json")
    sets = ("--set", "checksum=checksum_fast", "--set", "log=log_print")
    succeed("patch", demo, *sets, "--build-id", "seed:x", "-o", home / "cli", "--edits", home / "cli.json")

    assert (home / "api").read_bytes() == (home / "cli").read_bytes()
    assert (home / "api.json").read_bytes() == (home / "cli.json").read_bytes()
    edits = json.loads((home / "api.json").read_text())["edits"]
    assert [(edit.file_offset, edit.old.hex(), edit.new.hex(), edit.kind) for edit in plan.edits] == [
        (edit["file_offset"], edit["old"], edit["new"], edit["kind"]) for edit in edits
    ]
    assert json.loads((home / "api.report.json").read_text())["images"][0]["path"] == str(home / "api")
    assert "by checksum_fast" in toolchain.run(home / "api")
    assert plan.describe() in succeed("patch", demo, *sets, "--build-id", "seed:x", "--dry-run")


def test_a_difference_is_what_the_command_prints(demo: Path) -> None:
    other = demo.with_name("other")
    with staticcall.open(demo) as file:
        file.plan({"log": "log_print"}).apply(other)
    difference = staticcall.diff(demo, other, policy="kernel")

    assert difference.to_json() == succeed("diff", "--format", "json", "--policy", "kernel", demo, other)
    assert difference.render(verbose=True) == succeed("diff", "-v", "--policy", "kernel", demo, other)


def test_what_was_packed_comes_out_packed(demo: Path) -> None:
    packed, output = demo.with_name("demo.xz"), demo.with_name("out.xz")
    packed.write_bytes(lzma.compress(demo.read_bytes(), check=lzma.CHECK_CRC32))
    with staticcall.open(packed) as file:
        assert file.report().container == ("xz",)
        file.plan({"log": "log_print"}).apply(output, edits_file=demo.with_name("edits"))
    with staticcall.open(demo) as file:
        file.plan({"log": "log_print"}).apply(demo.with_name("out"))
    count = staticcall.revert(output, demo.with_name("edits"), demo.with_name("again.xz"))

    assert lzma.decompress(output.read_bytes()) == demo.with_name("out").read_bytes()
    assert demo.with_name("again.xz").read_bytes() == packed.read_bytes()
    assert count == len(json.loads(demo.with_name("edits").read_text())["edits"])


# ---- values ----


def test_results_can_be_pickled_and_used_in_another_process(demo: Path) -> None:
    with staticcall.open(demo) as file:
        report, plan = file.report(lines=True), file.plan({"log": "log_print"})
        proof = plan.apply(demo.with_name("first"))
    difference = staticcall.diff(demo, demo.with_name("first"))
    kept = demo.with_name("kept")
    kept.write_bytes(pickle.dumps((report, plan, proof, difference)))
    code = (
        "import pickle, sys\n"
        "report, plan, proof, difference = pickle.load(open(sys.argv[1], 'rb'))\n"
        "assert plan.apply(sys.argv[2]) == proof and not difference.equal\n"
        "print(report.render('text') + report.to_json(), end='')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, kept, demo.with_name("second")], capture_output=True, text=True, check=True
    )

    assert done.stdout == report.render("text") + report.to_json()
    assert demo.with_name("first").read_bytes() == demo.with_name("second").read_bytes()
    assert pickle.loads(kept.read_bytes()) == (report, plan, proof, difference)  # noqa: S301 - its own


@pytest.mark.parametrize(("what", "name"), [("report", "sites"), ("plan", "edits"), ("site", "key"), ("new", "any")])
def test_values_cannot_be_changed(what: str, name: str, demo: Path) -> None:
    with staticcall.open(demo) as file:
        report, plan = file.report(), file.plan(bind=True)
    value: object = {"report": report, "plan": plan, "site": report.sites[0], "new": report.keys[0]}[what]

    with pytest.raises(AttributeError):
        setattr(value, name, ())


def test_values_can_be_members_of_a_set(demo: Path) -> None:
    with staticcall.open(demo) as file:
        values = (file.report(), file.plan(bind=True), file.report(), file.plan(bind=True))
        other = file.report(policy="torvalds")

    assert len({*values, other}) == 3
    assert len({*values[0].sites, *values[2].sites}) == len(values[0].sites)


def test_words_are_equal_to_their_text(demo: Path) -> None:
    with staticcall.open(demo) as file:
        site = file.report().sites[0]

    assert site.form == "call"
    assert site.verdict == "direct"
    assert f"{site.verdict}" == "direct"
    assert [str(word) for word in staticcall.Verdict] == [str(word) for word in Answer]


def test_names_that_would_move_a_terminal_are_shown_as_their_numbers(demo: Path) -> None:
    demo.write_bytes(
        demo.read_bytes().replace(b"checksum\0", b"\x1b[2Jksum\0").replace(b"sum_picture", b"\x1b[2Jpicture")
    )
    with staticcall.open(demo) as file:
        report = file.report()
    shown = repr((report, report.sites, report.keys, report.trampolines)) + repr(file)

    assert shown.isprintable()
    assert "\\x1b[2J" in shown


def test_a_notebook_gets_a_table_that_is_escaped(demo: Path) -> None:
    odd = demo.rename(demo.with_name("<b>&"))
    with staticcall.open(odd) as file:
        table = file.report()._repr_html_()

    assert "&lt;b&gt;&amp;" in table
    assert "<b>" not in table
    assert "<td>fits-line</td>" in table
