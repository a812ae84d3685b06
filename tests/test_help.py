"""What `--help` says: every example in it runs, it fits a terminal, and exit codes are those of the code."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from staticcall.cli.command import Command, grouped, settings_of_command
from staticcall.cli.commands import COMMANDS
from staticcall.cli.main import cli, command_named
from staticcall.cli.man import examples
from staticcall.errors import ExitCode
from tests.support import playground
from tests.support.programs import Builder
from tests.support.tool import staticcall, succeed

EXAMPLES = [
    (command, example)
    for command, lines in (("", examples(cli)), *((name, examples(command_named(name))) for name in COMMANDS))
    for example in playground.commands(lines)
]
OUTPUTS = {(name, option) for name in COMMANDS for option in ("output", "in-place", "format")}
# Signing needs a key and the kernel's own program; tests/test_signed_modules_boot.py has both.
ELSEWHERE = re.compile(r"--sign-with")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, built: Builder, packers: None) -> Path:  # noqa: ARG001 - what is used
    built("demo", "exec")  # asks for the compiler
    return playground.make(tmp_path_factory.mktemp("playground"))


@pytest.fixture
def inside(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the files, as the working directory."""
    folder = tmp_path / "copy"
    shutil.copytree(files, folder)
    monkeypatch.chdir(folder)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("command", "example"), [case for case in EXAMPLES if not ELSEWHERE.search(case[1])], ids=lambda text: text[:60]
)
def test_an_example_runs_as_it_stands(command: str, example: str, inside: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in inside.rglob("*")}
    words = playground.words(example)
    outcome = staticcall(*words)

    assert (outcome.code, outcome.err) == (0, ""), outcome
    assert not command or words[0] == command
    # It does something: says it, or writes it.
    assert outcome.out or {path: path.stat().st_mtime_ns for path in inside.rglob("*")} != before


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_examples_of_its_own(name: str) -> None:
    assert examples(command_named(name))


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_fits_a_terminal_of_eighty_columns(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = succeed(*([name] if name else []), "--help").splitlines()
    # What one may copy is never broken into two lines.
    as_they_are = re.compile(r" {4}.*staticcall ")

    assert [line for line in lines if len(line) > 80 and not as_they_are.match(line)] == []
    assert max(map(len, lines)) <= 92


@pytest.mark.parametrize("name", COMMANDS)
def test_options_are_in_the_same_groups_everywhere(name: str) -> None:
    command = command_named(name)
    assert isinstance(command, Command)
    groups = grouped(command, command.make_context(name, ["FILE"], resilient_parsing=True))

    text = succeed(name, "--help")
    assert [line[:-1] for line in text.splitlines() if re.match(r"[A-Z][a-z ]+:$", line)] == list(groups)
    shown = [option.opts[-1] for options in groups.values() for option in options]
    assert sorted(shown) == sorted(set(shown))
    assert list(groups)[-1] == "General"
    assert groups["General"][-1].opts[-1] == "--help"


@pytest.mark.parametrize(
    ("word", "advice"), [("reprot", "did you mean report"), ("x" * 9, "--help lists all"), ("-", "--help")]
)
def test_a_command_that_there_is_not_is_one_line_with_advice(word: str, advice: str) -> None:
    outcome = staticcall(word, "file")
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert f"there is no command {word}, {advice}" in outcome.err


@pytest.mark.parametrize("name", COMMANDS)
def test_what_several_commands_have_is_said_in_the_same_words(name: str) -> None:
    """But for what a command has to say otherwise."""
    other = {("annotate", "verbose"), ("verify", "table"), ("patch", "edits"), ("revert", "edits"), *OUTPUTS}
    said = settings_of_command(command_named(name))
    for owner in COMMANDS:
        for option, setting in settings_of_command(command_named(owner)).items():
            if option in said and not {(name, option), (owner, option)} & other:
                assert (said[option].help, said[option].choices) == (setting.help, setting.choices), (owner, option)


def test_the_exit_codes_that_help_tells_are_those_of_the_program() -> None:
    (section,) = re.findall(r"^Exit codes:\n((?: .*\n)+)", succeed("--help"), re.MULTILINE)
    told = dict(re.findall(r"^  (\d+) +(.*(?:\n {5,}.*)*)", section, re.MULTILINE))

    assert {int(code): " ".join(text.split()) for code, text in told.items() if int(code) < 128} == {
        code.value: code.meaning for code in ExitCode
    }
    assert [code.value for code in ExitCode] == [0, 1, 2, 3, 4, 5]
