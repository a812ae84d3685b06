"""Long text at a terminal goes through a pager, which is the user's own business."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.programs import Builder
from tests.support.terminal import Shown, at_terminal, plain
from tests.support.tool import staticcall


@pytest.fixture(scope="module")
def calls(built: Builder) -> Path:
    return built("calls", "exec")


def paged(pager: str | None, *arguments: str | Path, rows: int = 10, errors: bool = False, **env: str | None) -> Shown:
    return at_terminal("report", *arguments, rows=rows, errors=errors, env={"STATICCALL_PAGER": pager, **env})


def test_what_is_longer_than_the_terminal_goes_through_the_pager(calls: Path, tmp_path: Path) -> None:
    direct = paged("cat", calls)
    shown = paged(f"cat > {tmp_path}/seen; echo $LESS $LV", calls)

    assert shown.code == direct.code == 0
    assert (tmp_path / "seen").read_text() == direct.written.replace("\r\n", "\n"), "in colour as well"
    assert shown.written.split() == ["FRX", "-c"]


@pytest.mark.parametrize(
    ("options", "rows"),
    [((), 200), (("--no-pager",), 10), (("--format", "json"), 10), (("--quiet",), 10)],
    ids=["short", "asked not to", "json", "quiet"],
)
def test_the_pager_is_left_out(calls: Path, options: tuple[str, ...], rows: int) -> None:
    shown = paged("echo paged", *options, calls, rows=rows)

    assert shown.code == 0
    assert "paged" not in shown.written.split()


def test_a_pipe_has_no_pager(calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = staticcall("report", calls)
    monkeypatch.setenv("PAGER", "echo paged")
    monkeypatch.setenv("LINES", "3")

    assert staticcall("report", calls) == text


@pytest.mark.parametrize(
    ("own", "pager", "expected"),
    [("echo own", "echo other", "own"), (None, "echo other", "other"), ("", "echo other", None), ("cat", None, None)],
)
def test_the_tools_own_variable_goes_before_that_of_all_tools(
    calls: Path, own: str | None, pager: str | None, expected: str | None
) -> None:
    shown = paged(own, calls, PAGER=pager)

    assert shown.code == 0
    if expected is None:
        assert "policy lutomirski" in plain(shown.written)
    else:
        assert shown.written.split() == [expected]


def test_a_pager_that_is_not_there_is_no_error(calls: Path) -> None:
    shown = paged("no-such-pager-anywhere", calls)

    assert shown.code == 0
    assert "policy lutomirski" in plain(shown.written)


def test_a_terminal_without_less_shows_the_text_itself(calls: Path, tmp_path: Path) -> None:
    shown = paged(None, calls, PAGER=None, PATH=str(tmp_path))

    assert shown.code == 0
    assert "policy lutomirski" in plain(shown.written)


@pytest.mark.parametrize("pager", ["exit 1", "true", "head -n 1", "kill -9 $$"])
def test_the_exit_code_is_the_reports_however_the_pager_ends(calls: Path, pager: str) -> None:
    shown = paged(pager, "--fail-on", "note", calls, rows=5, errors=True)

    assert shown.code == 1
    assert "Traceback" not in shown.written


def test_a_file_that_cannot_be_read_is_said_on_the_terminal_and_not_to_the_pager(calls: Path, tmp_path: Path) -> None:
    shown = paged(f"cat > {tmp_path}/seen", calls, tmp_path / "missing", errors=True)

    assert shown.code == 3
    assert f"staticcall: {tmp_path}/missing: cannot be opened" in shown.written
    assert "staticcall: " not in (tmp_path / "seen").read_text()


def test_a_name_of_a_file_is_no_command(built: Builder, tmp_path: Path) -> None:
    program = tmp_path / "$(touch hacked); touch hacked"
    program.write_bytes(built("calls", "exec").read_bytes())

    shown = paged("cat", program)
    assert shown.code == 0
    assert paged("head -n 1", program).code == 0
    assert not list(tmp_path.glob("hacked")) + list(Path.cwd().glob("hacked"))


def test_less_shows_a_page_at_a_time(calls: Path) -> None:
    # It says : where a page ends.
    shown = at_terminal("report", calls, rows=10, env={"PAGER": None}, keys=[(":", "q")])

    assert shown.code == 0
    text = plain_of_less(shown.written)
    assert "policy lutomirski" in text
    assert "leads to" not in text


def test_an_interruption_is_for_the_pager(calls: Path) -> None:
    # It may be interrupted before it reads or while it does, and goes on reading then; what is typed is not shown.
    listens = "stty -echo < /dev/tty; trap 'echo heard' INT; echo ready; until read answer < /dev/tty; do :; done"
    shown = at_terminal(
        *("report", calls),
        rows=10,
        env={"PAGER": f"cat > /dev/null; {listens}; echo over"},
        keys=[("ready", "\x03"), ("heard", "\r")],
        errors=True,
    )

    assert shown.code == 0
    assert [line for line in shown.screen if line][-1] == "over"
    assert "heard" in shown.written
    assert "interrupted" not in shown.written


def plain_of_less(text: str) -> str:
    """What less wrote, without how it moves about."""
    return re.sub(r"\x1b(\[[?0-9;]*[A-Za-z]|[=>])", "", text)


def test_a_difference_is_paged_too(calls: Path, built: Builder) -> None:
    shown = at_terminal("diff", calls, built("calls", "pie"), rows=1, env={"PAGER": "echo paged"})

    assert (shown.code, shown.written.split()) == (0, ["paged"])
