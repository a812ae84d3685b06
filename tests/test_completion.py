"""Completion in the shells themselves: what they offer, of which file, and that nothing else happens."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from staticcall.cli.commands import COMMANDS
from staticcall.cli.complete import answer
from tests.support import shells
from tests.support.programs import Builder
from tests.support.tool import POLICIES, names_in, succeed
from tests.support.toolchain import symbols

KEYS = ["alpha", "beta", "hook", "zero"]
# What is the same in every shell, asked of the program alone.
LINES = {
    "staticcall re": ["report", "revert"],
    "staticcall report --policy ": [*POLICIES],
    "staticcall report --line 6": ["64"],
    "staticcall schema conf": ["config"],
    "staticcall report program --key ": KEYS,
    "staticcall patch 'a program' --pin al": ["alpha"],
    "staticcall explain program h": ["hook"],
    "staticcall patch program --set ze": ["zero="],
    "staticcall allow-list program --target ho": ["hook="],
    "staticcall report damaged --key ": [],
    "staticcall report ~/program --key ": KEYS,
    'staticcall report "$THERE/program" --key ': KEYS,
}
OBEYED = ["$(touch${IFS}x)", "`touch${IFS}x`", "--in-place"]
HOSTILE = [*OBEYED, "a;b", "a@b", "a b", "a\tb", "~root", "*", "a'b", "a\nb", "-v"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, built: Builder) -> Path:
    """Files to complete, in one folder."""
    folder = tmp_path_factory.mktemp("completion")
    for name in ("program", "a program"):
        shutil.copy(built("calls", "exec"), folder / name)
    (folder / "damaged").write_bytes((folder / "program").read_bytes()[:3000])
    rename(folder / "program", OBEYED, folder / "hostile")
    return folder


def rename(program: Path, names: list[str], renamed: Path) -> None:
    """A copy of the program whose keys, all but `zero`, have other names."""
    pairs = [(f"__SC{kind}__{old}=__SC{kind}__{new}") for old, new in zip(KEYS, names, strict=False) for kind in "KT"]
    subprocess.run(
        ["objcopy", *(word for pair in pairs for word in ("--redefine-sym", pair)), program, renamed], check=True
    )


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    return shells.environment(tmp_path_factory.mktemp("tools"))


def test_bash_offers_what_fits(folder: Path, variables: Mapping[str, str], needs: Callable[..., None]) -> None:
    needs("bash")
    wanted = {
        "staticcall re": ["report", "revert"],
        "staticcall patch 'a program' --pin al": ["alpha"],
        # bash takes what is behind = for a word of its own.
        "staticcall report --policy=to": ["torvalds"],
        "staticcall patch program --set alpha=": ["NULL", "RET0"],
        "staticcall patch program --set=alpha=alpha_f": ["alpha_fast"],
        # The file may stand behind the cursor.
        f"staticcall report --key b{shells.CURSOR} program": ["beta"],
        "staticcall report hostile --key ": ["zero"],
    }
    answers = shells.bash([*wanted], folder, variables)
    assert dict(zip(wanted, answers, strict=True)) == wanted
    assert "x" not in names_in(folder)


def test_fish_offers_what_fits(folder: Path, variables: Mapping[str, str], needs: Callable[..., None]) -> None:
    needs("fish")
    wanted = {
        "staticcall report --policy=to": ["--policy=torvalds"],
        "staticcall report hostile --key ": ["zero"],
        "staticcall patch program --set=alpha=alpha_f": ["--set=alpha=alpha_fast"],
        "staticcall report pro": ["program"],
        "staticcall report --output=pro": ["--output=program"],
    }
    answers = shells.fish([*wanted], folder, variables)
    assert dict(zip(wanted, answers, strict=True)) == wanted
    assert "x" not in names_in(folder)


def test_zsh_completes_what_is_typed(folder: Path, variables: Mapping[str, str], needs: Callable[..., None]) -> None:
    needs("zsh")
    wanted = {
        "staticcall report --policy=to": "--policy=torvalds ",
        "staticcall report hostile --key ": "zero ",
        "staticcall patch program --set ze": "zero=",
        "staticcall patch program --set=alpha=alpha_f": "--set=alpha=alpha_fast ",
        "staticcall report pro": "program ",
        "staticcall report --output=pro": "--output=program ",
        # What each command does stands beside it.
        "staticcall ": "Take back what patch did",
    }
    shells.zsh(wanted, folder, variables)
    assert "x" not in names_in(folder)


def told(before: str, after: str = "") -> list[list[str]]:
    """What the program says of a line, in this process: kind, word and help of each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("_STATICCALL_BEFORE", before)
        patch.setenv("_STATICCALL_AFTER", after)
        return [line.split("\t") for line in answer("fish").splitlines()]


def ask(folder: Path, before: str, after: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """What a script asks, without a shell."""
    given = {"_STATICCALL_COMPLETE": "fish", "_STATICCALL_BEFORE": before, "_STATICCALL_AFTER": after, **variables}
    return subprocess.run(
        [sys.executable, "-m", "staticcall"],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, **given},
    )


def offered(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.stderr == ""
    return [line.split("\t")[1] for line in done.stdout.splitlines()]


@pytest.mark.parametrize("line", LINES)
def test_what_fits_is_offered(line: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("THERE", str(folder))
    assert [word for _, word, _ in told(line)] == LINES[line]


def test_every_command_is_offered_and_told_about() -> None:
    lines = told("staticcall ")
    assert told("staticcall --include-dir ") == lines
    assert [name for _, name, _ in lines] == list(COMMANDS)
    # A whole sentence, and none that breaks off.
    assert [text for _, _, text in lines if not text or text.endswith("...")] == []


@pytest.mark.parametrize("names", [HOSTILE[start : start + 3] for start in range(0, len(HOSTILE), 3)], ids=str)
def test_a_name_that_a_shell_could_obey_is_not_offered(
    names: list[str], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename(folder / "program", names, tmp_path / "renamed")
    (image,) = json.loads(succeed("report", "--format", "json", tmp_path / "renamed"))["images"]
    assert {key["name"] for key in image["keys"]} == {*names, "zero"}
    monkeypatch.chdir(tmp_path)
    assert told("staticcall report renamed --key ") == [["plain", "zero", ""]]
    assert told("staticcall patch renamed --set ") == [["open", "zero=", ""]]


def test_the_line_is_only_read(folder: Path, tmp_path: Path) -> None:
    """Neither is anything written that the line asks for, nor a settings file read, nor a word of it run."""
    (tmp_path / "staticcall.toml").write_text("nonsense")
    shutil.copy(folder / "program", tmp_path)
    line = (
        "staticcall patch program --in-place --edits new --bind --sign-with 'touch signed' `touch x` $(touch x) --pin "
    )
    assert offered(ask(tmp_path, line)) == KEYS
    assert names_in(tmp_path) == {"staticcall.toml", "program"}
    assert (tmp_path / "program").read_bytes() == (folder / "program").read_bytes()


@pytest.mark.parametrize(
    ("before", "variables"),
    [
        ("staticcall report 'open", {}),
        ("staticcall report \udcff\x01 --key ", {}),
        ("staticcall report --key ", {"_STATICCALL_COMPLETE": "tcsh"}),
    ],
)
def test_whatever_is_typed_nothing_is_said_about_it(before: str, variables: dict[str, str], folder: Path) -> None:
    done = ask(folder, before, **variables)
    assert done.stderr == ""
    assert "Traceback" not in done.stdout
    assert done.returncode in (0, 1)


def test_a_pipe_for_a_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    done = ask(tmp_path, "staticcall report pipe --key ")
    assert (offered(done), done.returncode) == ([], 0)


@pytest.mark.kernel
def test_keys_and_functions_of_a_kernel_complete(vmlinux_612: Path) -> None:
    names = symbols(vmlinux_612)
    keys = {name.removeprefix("__SCK__") for name in names if name.startswith("__SCK__")}
    before = f"staticcall patch {vmlinux_612} --set "
    assert {word.removesuffix("=") for _, word, _ in told(before)} == keys
    functions = sorted(name for name in names if name.startswith("native_sched_clock"))
    offers = [word for _, word, _ in told(f"{before}pv_sched_clock=native_sched_clock")]
    assert offers == [f"pv_sched_clock={name}" for name in functions]
