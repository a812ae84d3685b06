"""The text for people at a terminal: as wide as that is, in colour only there, and with all that plain text says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from staticcall.model.diff import Default, Diff, ImageDiff, Side
from staticcall.model.sites import Policy
from staticcall.model.terminal import Terminal
from staticcall.model.tree import Example, FileCount, Survey, Totals
from staticcall.report.canvas import Canvas, Column
from staticcall.report.terminal import render_diff_terminal, render_totals_terminal
from tests.support.programs import Builder
from tests.support.terminal import COLOUR, at_terminal, on_screen, plain
from tests.support.tool import staticcall, staticcall_process, succeed

WIDTHS = (60, 80, 120, 200, 250)
# A flag of the compiler is left whole, so that it can be copied.
FLAG = re.compile(r"^ *-\S+$")


@pytest.fixture(autouse=True)
def _no_wishes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "PAGER", "STATICCALL_PAGER"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def calls(built: Builder) -> Path:
    return built("calls", "exec")


def fits(text: str, width: int) -> None:
    lines = plain(text).splitlines()
    assert lines
    assert [line for line in lines if len(line) > width and not FLAG.match(line)] == []


def coloured(monkeypatch: pytest.MonkeyPatch, width: int, *arguments: str | Path) -> str:
    """What the tool says into a pipe whose reader shows colour."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    outcome = staticcall(*arguments)
    assert (outcome.code, outcome.err) == (0, "")
    return outcome.out


# ---- at a real terminal ----


@pytest.mark.parametrize("width", [60, 120])
def test_a_report_at_a_terminal_fits_it_and_is_in_colour(calls: Path, width: int) -> None:
    shown = at_terminal("report", calls, columns=width, rows=200)

    assert shown.code == 0
    assert COLOUR.search(shown.written)
    written = shown.written.replace("\r\n", "\n")
    fits(written, width)
    assert "".join("".join(shown.screen).split()) == "".join(plain(written).split())


@pytest.mark.parametrize(
    ("env", "expected"),
    [({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False), ({"TERM": None}, True)],
    ids=["no-color", "no-color-empty", "dumb", "no-term"],
)
def test_a_terminal_is_in_colour_unless_it_or_its_user_says_no(
    calls: Path, env: dict[str, str | None], expected: bool
) -> None:
    shown = at_terminal("report", calls, rows=200, env=env)

    assert shown.code == 0
    assert bool(COLOUR.search(shown.written)) == expected
    fits(shown.written.replace("\r\n", "\n"), 80)


@pytest.mark.parametrize("columns", ["9" * 5000, "0", "-5", "\u0661"])
def test_a_width_that_is_none_is_left_to_the_terminal(calls: Path, columns: str) -> None:
    shown = at_terminal("report", calls, columns=70, rows=200, env={"COLUMNS": columns})

    assert shown.code == 0
    fits(shown.written.replace("\r\n", "\n"), 70)


# ---- in a pipe ----


def test_a_pipe_gets_plain_text_however_wide_the_terminal_is(calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = staticcall_process("report", calls)
    monkeypatch.setenv("COLUMNS", "60")

    assert staticcall_process("report", calls) == before
    assert before.out == succeed("report", calls)
    assert "\x1b" not in before.out


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"FORCE_COLOR": "1"}, True),
        ({"FORCE_COLOR": ""}, False),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        ({"FORCE_COLOR": "1", "NO_COLOR": ""}, True),
    ],
    ids=["force", "force-empty", "both", "no-color-empty"],
)
def test_a_pipe_is_in_colour_only_where_that_is_forced(
    calls: Path, monkeypatch: pytest.MonkeyPatch, env: dict[str, str], expected: bool
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)

    assert bool(COLOUR.search(succeed("report", calls))) == expected


def test_what_is_for_programs_and_what_goes_into_a_file_is_never_in_colour(
    calls: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text, document = succeed("report", calls), succeed("report", "--format", "json", calls)
    monkeypatch.setenv("FORCE_COLOR", "1")

    assert succeed("report", "--format", "json", calls) == document
    assert succeed("report", "--output", tmp_path / "report.txt", calls) == ""
    assert (tmp_path / "report.txt").read_text() == text


# ---- widths ----


@pytest.mark.parametrize("width", WIDTHS)
def test_a_report_fits_whatever_the_width(calls: Path, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    for options in ((), ("-v",), ("--policy", "block8")):
        fits(coloured(monkeypatch, width, "report", *options, calls), width)


def test_a_wide_terminal_shows_every_word_and_number_of_the_plain_text(
    calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = set(succeed("report", "-v", calls).split())
    wide = plain(coloured(monkeypatch, 250, "report", "-v", calls)).split()

    # The headings of columns are put differently.
    assert words - set(wide) <= {"keys", "forms", "leads", "busiest"}


def test_names_without_room_are_folded_and_not_cut_off() -> None:
    names = [f"tp_func_{'very_' * length}long_name" for length in range(0, 20, 3)]
    canvas = Canvas(Terminal(60, colour=True))
    columns = (Column("key", "cyan"), Column("sites", number=True), Column("leads to"))
    canvas.table(columns, [(name, f"{len(name):,}", f"to_{name}") for name in names])

    fits(str(canvas), 60)
    head, *lines = on_screen(str(canvas), 60, 60)
    sites, target = head.index("sites"), head.index("leads to")
    assert "".join(line[:sites].strip() for line in lines) == "".join(names)
    assert "".join(line[target:] for line in lines) == "".join(f"to_{name}" for name in names)
    assert " ".join(line[sites:target].strip() for line in lines).split() == [str(len(name)) for name in names]


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_workers_know_the_terminal_too(calls: Path, monkeypatch: pytest.MonkeyPatch, jobs: str) -> None:
    one = coloured(monkeypatch, 70, "report", calls)

    assert coloured(monkeypatch, 70, "report", "-j", jobs, calls, calls) == f"{one}\n{one}"


@pytest.mark.kernel
@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_the_report_on_a_kernel_fits(vmlinux_612: Path, width: int) -> None:
    shown = at_terminal("report", vmlinux_612, columns=width, rows=200)

    assert shown.code == 0
    fits(shown.written.replace("\r\n", "\n"), width)
    assert any(line.split()[:1] == ["preempt_schedule"] for line in shown.screen)


# ---- trees and differences ----

PATH = "/lib/modules/6.12.117+deb12-cloud-amd64/kernel/drivers/net/ethernet/intel/" + "ixgbe" * 12 + ".ko.xz"
SURVEY = Survey(
    Totals(
        read=4321,
        with_calls=1000,
        skipped=12,
        failed=1,
        with_sites=900,
        sites=7654321,
        crossing=432,
        reasons={("direct", "fits-line"): 7654320, ("trampoline", "crosses-line"): 1},
        forms={"call": 7654321},
        keys=frozenset(f"key{number}" for number in range(40)),
        findings={("warning", "odd"): Example(3, PATH, "something is odd there, and it takes words to say what")},
        busiest=(FileCount(PATH, 7654000, 7653999, 39, 2), FileCount("b.ko", 321, 321, 1, 1)),
        names={"symtab": 4000, "none": 321},
        layers={"xz": 4321},
    ),
    (FileCount(PATH, 7654000, 7653999, 39, 2), FileCount("b.ko", 321, 321, 1, 1)),
    (),
)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_summary_of_trees_fits(width: int) -> None:
    text = render_totals_terminal("/lib/modules/6.12", SURVEY, Policy(), Terminal(width, colour=True))

    fits(text, width)
    for word in ("7,654,320", "7,654,000", "39", "b.ko", "432", "odd,"):
        assert word in plain(text).split()
    assert PATH in "".join(line.split("  ")[-1].strip() for line in plain(text).splitlines())


@pytest.mark.parametrize("width", WIDTHS)
def test_a_difference_fits(width: int) -> None:
    changes = ImageDiff(
        "vmlinux",
        "old",
        "new",
        keys_added=tuple(f"tp_func_{'very_' * 12}long_name_{number}" for number in range(30)),
        keys_lost=(),
        defaults=(Default("key", "before", "after"),),
        sites_added=(),
        sites_lost=(),
        forms=(),
        verdicts=(),
    )
    diff = Diff(Side(PATH, 1, 2, 3), Side("new", 1, 32, 3), (), (), (changes,))
    text = render_diff_terminal(diff, Terminal(width, colour=True))

    fits(text, width)
    assert "key: before -> after" in plain(text)
    assert "and 20 more (-v shows all)" in plain(text)


def test_a_difference_at_a_terminal_has_the_numbers_of_the_plain_text(
    calls: Path, built: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = (calls, built("calls", "pie"))
    words = succeed("diff", "-v", *files).split()

    assert sorted(plain(coloured(monkeypatch, 250, "diff", "-v", *files)).split()) == sorted(words)


# ---- what names may hold ----


def test_what_a_terminal_would_obey_is_spelt_out_and_takes_the_room_that_it_needs() -> None:
    canvas = Canvas(Terminal(60, colour=True))
    evil = "\x1b[2J\x1b]0;title\x07\r\n[red]markup[/red] \u202ereversed"
    canvas.heading(evil)
    canvas.words(evil * 3, indent=2, hang=4)
    canvas.labelled("note:", "cyan", evil)
    canvas.table((Column("name", "cyan"), Column("sites", number=True)), [(evil, "1"), (evil * 4, "22")])

    text = str(canvas)
    fits(text, 60)
    assert "[red]markup[/red]" in text
    assert not {"\u202e", "\x07", "\r"} & set(text)


def test_characters_that_are_two_columns_wide_do_not_move_what_is_beside_them() -> None:
    canvas = Canvas(Terminal(40))
    canvas.table((Column("name"), Column("sites", number=True)), [("\u6771\u4eac" * 14, "1"), ("narrow", "2")])

    lines = [line for line in on_screen(str(canvas), 40) if line]
    assert [line[-1] for line in (lines[1], lines[-1])] == ["1", "2"]
    assert len({len(line.encode("utf-16-le")) for line in lines[:1]}) == 1
    assert sum(line.count("\u6771") for line in lines) == 14


def test_bars_are_ascii_where_the_terminal_knows_no_more() -> None:
    assert Canvas(Terminal(80, unicode=False)).bar(1, 2) == "#" * 10
    assert Canvas(Terminal(80)).bar(1, 2) == "\u2588" * 10
    assert Canvas(Terminal(80)).bar(1, 100_000) == "\u2588", "what there is of can be seen"
    assert Canvas(Terminal(60)).bar(1, 2) == ""


def test_names_are_ascii_where_the_terminal_knows_no_more() -> None:
    canvas = Canvas(Terminal(60, unicode=False))
    canvas.heading("\u6771\u4eac" * 6)
    canvas.table((Column("name"), Column("sites", number=True)), [("\u044f\u0434" * 6, "1"), ("\u044f\u0434" * 9, "2")])

    assert str(canvas).isascii()
    fits(str(canvas), 60)
    assert "\\u6771\\u4eac" in str(canvas)


def test_a_very_long_name_is_folded_as_any() -> None:
    name, canvas = "\u6771" * 200_000, Canvas(Terminal(60))
    canvas.words(name, indent=2, hang=4)

    text = str(canvas)
    fits(text.replace("\u6771", "xx"), 60)
    assert "".join(text.split()) == name
