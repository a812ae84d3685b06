"""What patch is told, by the command line and by a file, and what of that cannot be meant."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.programs import Builder
from tests.support.tool import patch, staticcall

FAST = ("--set", "alpha=alpha_fast")


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _config(program: Path, text: str) -> Path:
    config = program.with_name("config.toml")
    config.write_text(text)
    return config


def test_a_file_can_say_what_is_wanted(built: Builder, tmp_path: Path) -> None:
    program = built("calls", "exec")
    config = _config(
        tmp_path / "program",
        'policy = "kernel"\nline = 32\nbind = true\nkey = "b*"\nforce = ["null-returns-value"]\n'
        '[set]\nalpha = "alpha_fast"\nzero = "NULL"\n',
    )
    by_file = patch(program, tmp_path / "file", "--config", config)
    options = ("--policy", "kernel", "--line", "32", "--bind", "--key", "b*", "--force", "null-returns-value")
    by_words = patch(program, tmp_path / "words", *options, *FAST, "--set", "zero=NULL")
    assert by_file.output.read_bytes() == by_words.output.read_bytes()
    assert {edit["key"] for edit in by_file.edits} == {"alpha", "beta", "zero"}


def test_the_command_line_wins_over_the_file(program: Path) -> None:
    config = _config(
        program, 'policy = "kernel"\nline = 32\nkey = "z*"\n[set]\nalpha = "zero_plus"\nbeta = "beta_fast"\n'
    )

    def same(said: tuple[str, ...], meant: tuple[str, ...]) -> None:
        one = patch(program, program.with_name("said"), "--config", config, *said)
        two = patch(program, program.with_name("meant"), *meant)
        assert one.output.read_bytes() == two.output.read_bytes()

    beta, kernel = ("--set", "beta=beta_fast"), ("--policy", "kernel", "--line", "32")
    same(FAST, (*FAST, *beta, *kernel))
    same(("--set", "alpha=zero_plus"), ("--set", "alpha=zero_plus", *beta, *kernel))
    # Also where what is said is what would hold without a file.
    same((*FAST, "--policy", "lutomirski"), (*FAST, *beta, "--line", "32"))
    same((*FAST, "--policy", "lutomirski", "--line", "64"), (*FAST, *beta))
    same((*FAST, "--line", "64"), (*FAST, *beta, "--policy", "kernel"))
    same(("--bind", *FAST), (*FAST, *beta, *kernel, "--bind", "--key", "z*"))
    same(("--bind", "--key", "h*", *FAST), (*FAST, *beta, *kernel, "--bind", "--key", "h*"))


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("polizy = 'kernel'", 2, "unknown option polizy"),
        ("policy = 'nobody'", 2, "unknown policy nobody"),
        ("policy = 3", 2, "policy a int"),
        ("bind = 1", 2, "bind a int"),
        ("line = true", 2, "line a bool"),
        ("line = 48", 2, "48 bytes"),
        ("line = 4", 2, "4 bytes"),
        ("line = -64", 2, "-64 bytes"),
        ("set = ['alpha']", 2, "set a list"),
        ("[set]\nalpha = 3", 2, "alpha"),
        ("force = ['everything']", 2, "everything"),
        ("force = [3]", 2, "3"),
        ("[set", 3, "no TOML"),
        ("\udcff", 3, "no TOML"),
        ("", 2, "nothing to patch"),
        ("key = 'alpha'", 2, "nothing to patch"),
        ("[set]\nalpha = 'nothing'", 4, "unknown-function"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(text: str, code: int, words: str, program: Path) -> None:
    config = program.with_name("config.toml")
    config.write_bytes(text.encode("utf-8", "surrogateescape"))
    outcome = staticcall("patch", program, "-o", program.with_name("out"), "--config", config)
    assert (outcome.code, outcome.out) == (code, "")
    assert words in outcome.err
    assert outcome.err.count("\n") == 1
    assert _names(program.parent) == {"program", "config.toml"}


@pytest.mark.parametrize(
    "options",
    [
        ["--bind"],
        ["-o", "out"],
        ["-o", "out", "--in-place", "--bind"],
        ["-o", "out", "--dry-run", "--bind"],
        ["--in-place", "--dry-run", "--bind"],
        ["-o", "out", "--set", "alpha"],
        ["-o", "out", "--set", "=alpha_fast"],
        ["-o", "out", "--set", "alpha="],
        ["-o", "out", "--set", "alpha=alpha_fast", "--set", "alpha=RET0"],
        ["-o", "out", "--set", "alpha=alpha_fast", "--set", "__SCK__alpha=alpha_fast"],
        ["-o", "out", "--set", "alpha=0xzz"],
        ["-o", "out", "--bind", "--force", "everything"],
        ["-o", "out", "--bind", "--policy", "nobody"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_told_and_does_nothing(
    options: list[str], program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(program.parent)
    outcome = staticcall("patch", program, *options)
    assert (outcome.code, outcome.out) == (2, "")
    assert re.fullmatch(r"staticcall: .*\n", outcome.err)
    assert _names(program.parent) == {"program"}
