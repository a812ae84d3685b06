"""The manual pages: whole, well-formed, the same from build to build, and about what there is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from staticcall import __version__
from staticcall.cli import man
from staticcall.cli.commands import COMMANDS
from staticcall.errors import ExitCode
from tests.support.tool import succeed

PAGES = ["staticcall.1", *(f"staticcall-{name}.1" for name in COMMANDS)]
SECTIONS = [
    *("NAME", "SYNOPSIS", "DESCRIPTION", "COMMANDS", "OPTIONS", "EXAMPLES", "SETTINGS"),
    *("EXIT STATUS", "FILES", "ENVIRONMENT", "SEE ALSO"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("manual") / "new"
    man.main(folder)
    return folder


@pytest.fixture(scope="module")
def shown(folder: Path, needs: Callable[..., None]) -> Callable[[str], str]:
    """A page as text, one space between words."""
    needs("mandoc")

    def show(page: str) -> str:
        command = ("mandoc", "-T", "utf8", "-O", "width=300", folder / page)
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return re.sub(r".\x08", "", text)  # bold and underlined

    return show


def test_there_is_a_page_for_every_command(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_well_formed(page: str, folder: Path, needs: Callable[..., None]) -> None:
    needs("mandoc")
    done = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", folder / page], capture_output=True, text=True, check=False
    )
    # There is none on purpose: a page would differ from one build to the next.
    complaints = [line for line in done.stdout.splitlines() if "missing date" not in line]
    assert (complaints, done.stderr) == ([], "")
    assert not [line for line in (folder / page).read_text().splitlines() if line != line.rstrip()]


@pytest.mark.parametrize("page", PAGES)
def test_man_shows_a_page_without_complaint(page: str, folder: Path, needs: Callable[..., None]) -> None:
    needs("man", "groff")
    done = subprocess.run(
        ["man", "--warnings", "-l", folder / page],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "MANWIDTH": "80", "MAN_KEEP_FORMATTING": "", "LC_ALL": "C.UTF-8"},
    )
    assert done.stderr == ""
    assert f"staticcall {__version__}" in done.stdout


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_its_sections_in_order(page: str, folder: Path) -> None:
    found = re.findall(r"^\.SH (.*)$", (folder / page).read_text(), re.MULTILINE)
    whole = page == "staticcall.1"
    assert found == [name for name in SECTIONS if whole or name not in ("COMMANDS", "SETTINGS")]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_page_tells_every_option_example_and_exit_code_that_help_tells(
    name: str, shown: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    text = succeed(name, "--help")
    page = shown(f"staticcall-{name}.1")
    lines = [line.strip() for line in page.splitlines()]

    options = re.findall(r"^  (-.*?)(?:  .*)?$", text, re.MULTILINE)
    assert len(options) >= 2
    assert [option for option in options if option not in lines and not _beside(option, lines)] == []
    examples = re.findall(r"^    (staticcall .*)$", text, re.MULTILINE)
    assert examples
    assert [example for example in examples if example not in lines] == []
    for code in ExitCode:
        assert any(re.fullmatch(rf"{code.value} +{re.escape(code.meaning)}", line) for line in lines)


def _beside(option: str, lines: list[str]) -> bool:
    """A short option has its text in the same line."""
    return any(line.startswith(f"{option} ") for line in lines)


def test_the_same_pages_are_made_again(folder: Path, tmp_path: Path) -> None:
    variables = {**os.environ, "COLUMNS": "40", "LC_ALL": "C", "TZ": "Asia/Tokyo", "PYTHONHASHSEED": "1"}
    subprocess.run([sys.executable, "-m", "staticcall.cli.man", tmp_path / "again"], check=True, env=variables)
    for page in PAGES:
        assert (tmp_path / "again" / page).read_bytes() == (folder / page).read_bytes()


def test_the_first_page_describes_the_settings_file(shown: Callable[[str], str]) -> None:
    page = shown("staticcall.1")
    for word in ("staticcall.toml", "STATICCALL_CONFIG", "--no-config", "--sign-with", "[patch.set]", "NO_COLOR"):
        assert word in page
