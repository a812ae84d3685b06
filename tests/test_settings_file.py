"""staticcall.toml: where it is found, what it may say, and that a command line wins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest

from staticcall.cli.command import settings_of_command
from staticcall.cli.commands import COMMANDS
from staticcall.cli.entry import run
from staticcall.cli.main import command_named
from staticcall.cli.settings import Setting, why_not
from tests.support.programs import Builder
from tests.support.settings import good
from tests.support.tool import Outcome, names_in, schema, staticcall, succeed

NAME, VARIABLE = "staticcall.toml", "STATICCALL_CONFIG"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home directory with a project in it, which is the working directory."""
    folder = tmp_path / "house"
    (folder / "project/src").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.chdir(folder / "project/src")
    yield folder


@pytest.fixture
def calls(built: Builder) -> Path:
    return built("calls", "exec")


def policy_of(program: Path, *options: str) -> str:
    """The policy and line that a report is made by."""
    document = json.loads(succeed("report", "--format", "json", *options, program))
    return f"{document['policy']['name']} {document['policy']['line']}"


def says(folder: Path, text: str) -> Path:
    path = folder / NAME
    path.write_text(text)
    return path


# ---- where it is ----


def test_the_nearest_file_counts(home: Path, calls: Path) -> None:
    assert policy_of(calls) == "lutomirski 64"
    says(home, "line = 8")
    assert policy_of(calls) == "lutomirski 8"
    says(home / "project", "line = 16")
    assert policy_of(calls) == "lutomirski 16"
    says(home / "project/src", "line = 32")
    assert policy_of(calls) == "lutomirski 32"


def test_nothing_is_looked_for_above_the_home_directory(home: Path, calls: Path) -> None:
    says(home.parent, "line = 8")
    assert policy_of(calls) == "lutomirski 64"


def test_outside_of_the_home_directory_the_search_goes_on_to_the_root(
    home: Path, calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    says(home.parent, "line = 8")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert policy_of(calls) == "lutomirski 8"


def test_a_home_directory_behind_a_symbolic_link_is_the_same(
    home: Path, calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    says(home.parent, "line = 8")
    (tmp_path / "link").symlink_to(home)
    monkeypatch.setenv("HOME", str(tmp_path / "link"))
    assert policy_of(calls) == "lutomirski 64"


def test_what_is_no_file_is_not_found(home: Path, calls: Path) -> None:
    says(home, "line = 8")
    (home / "project" / NAME).mkdir()
    os.mkfifo(home / "project/src" / NAME)
    assert policy_of(calls) == "lutomirski 8"


def test_a_file_can_be_named_and_all_files_be_left_out(
    home: Path, calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    says(home, "line = 8")
    named = home / "named"
    named.write_text("line = 16")
    monkeypatch.setenv(VARIABLE, str(named))
    assert policy_of(calls) == "lutomirski 16"
    assert policy_of(calls, "--no-config") == "lutomirski 64"
    monkeypatch.setenv(VARIABLE, "")
    assert policy_of(calls) == "lutomirski 8"


@pytest.mark.parametrize(
    "content", [None, b"\xff", b"line = [", b"x" * (2 << 20), b"a=" + b"[" * 50_000, b"[%b]\n" % (b"x" * 9000) * 2]
)
def test_a_file_that_cannot_be_read_is_one_line(
    content: bytes | None, home: Path, calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = home / "named"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv(VARIABLE, str(path))
    for command in (("report", calls), ("patch", calls, "--dry-run")):
        assert one_line(staticcall(*command), path) == 3


def test_a_folder_or_pipe_that_is_named_is_refused(home: Path, calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(home / "pipe")
    for path in (home, home / "pipe"):
        monkeypatch.setenv(VARIABLE, str(path))
        assert one_line(staticcall("report", calls), path) == 2


def test_the_file_of_another_user_is_not_taken_unless_it_is_named(
    home: Path, calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = says(home, "line = 8")
    planted_by(path, 54321, monkeypatch)
    outcome = staticcall("report", calls)
    assert one_line(outcome, path) == 2
    assert "belongs to another user" in outcome.err
    assert policy_of(calls, "--no-config") == "lutomirski 64"
    monkeypatch.setenv(VARIABLE, str(path))
    assert policy_of(calls) == "lutomirski 8"


def test_the_owner_of_the_working_directory_says_what_holds_there(
    home: Path, calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root in a container, and somebody else's checkout; what a third one put above it is nobody's."""
    checkout, planted = says(home / "project", "line = 8"), says(home, "line = 16")
    planted_by(checkout, 54321, monkeypatch)
    planted_by(planted, 54322, monkeypatch)
    planted_by(Path.cwd(), 54321, monkeypatch)
    assert policy_of(calls) == "lutomirski 8"
    checkout.unlink()
    assert one_line(staticcall("report", calls), planted) == 2


def test_a_link_of_another_user_is_not_followed(home: Path, calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It chooses among one's own files."""
    own = home / "own"
    own.write_text("line = 8")
    link = home / NAME
    link.symlink_to(own)
    assert policy_of(calls) == "lutomirski 8"
    planted_by(link, 54321, monkeypatch)
    assert one_line(staticcall("report", calls), link) == 2


def planted_by(path: Path, user: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a file or link belong to somebody else, or seem to, where one may not give it away."""
    if os.geteuid() == 0:
        os.chown(path, user, -1, follow_symlinks=False)
        return
    node = path.lstat().st_ino

    def owned(status: os.stat_result) -> os.stat_result:
        return os.stat_result((*status[:4], user, *status[5:])) if status.st_ino == node else status

    for name in ("stat", "lstat", "fstat"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, real=real, **options: owned(real(*args, **options)))


def test_who_calls_sudo_has_files_of_their_own(home: Path, calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        pytest.skip("not root, who alone can be called so")
    os.chown(says(home, "line = 8"), 54321, -1)
    monkeypatch.setenv("SUDO_UID", "54321")
    assert policy_of(calls) == "lutomirski 8"


DOTTED = ".".join("a" * 12_000)


@pytest.mark.parametrize(
    "text", [f"{DOTTED} = 1", f"[{DOTTED}]", f"x = {{{DOTTED} = 1}}"], ids=["name", "table", "inside"]
)
def test_a_name_of_many_parts_takes_neither_time_nor_memory(text: str, home: Path, program: Path) -> None:
    """Python's reader of TOML would take gigabytes for it."""
    found, other = says(home, text), home / "patch.toml"
    other.write_text(text)
    began = time.process_time()
    assert one_line(staticcall("report", program), found) == 3
    assert one_line(staticcall("patch", program, "--dry-run", "--no-config", "--config", other), other) == 3
    assert time.process_time() - began < 2


# ---- what it does ----


def test_a_command_line_wins_over_a_table_and_a_table_over_what_is_for_all(home: Path, calls: Path) -> None:
    says(home, 'policy = "kernel"\nline = 8\n[report]\nline = 16\nhash = true\n[diff]\nline = 4096\n')
    assert policy_of(calls) == "kernel 16"
    assert policy_of(calls, "--line", "32") == "kernel 32"
    # Also by what click alone can read.
    assert policy_of(calls, "--line=32") == "kernel 32"
    assert policy_of(calls, "--policy=rel32") == "rel32 16"
    assert "sha256" in json.loads(succeed("report", "--format", "json", calls))["images"][0]
    assert json.loads(succeed("diff", "--format", "json", calls, calls))["policy"] == {"name": "kernel", "line": 4096}


def test_a_table_of_keys_and_a_list_are_options_given_again_and_again(home: Path, program: Path) -> None:
    says(home, '[patch]\nset = { alpha = "alpha_fast" }\n')
    assert "-> alpha_fast" in succeed("patch", program, "--dry-run")
    # What is given on the command line replaces all of it.
    assert "alpha" not in succeed("patch", program, "--dry-run", "--set", "beta=beta_fast")
    says(home, "[patch]\nset.beta = 'beta_fast'\n")
    assert "-> beta_fast" in succeed("patch", program, "--dry-run")
    says(home, "[patch]\npin = ['nothing', 'nobody']\n")
    assert "nothing" in staticcall("patch", program, "--dry-run").err


def test_a_file_for_patch_takes_the_place_of_the_one_that_is_found(home: Path, program: Path) -> None:
    says(home, '[patch]\nset = { alpha = "alpha_fast" }\n')
    other = home / "patch.toml"
    other.write_text('[set]\nbeta = "beta_fast"\n')
    out = succeed("patch", program, "--dry-run", "--config", other)
    assert "beta_fast" in out
    assert "alpha" not in out


def test_paths_are_those_from_the_file(home: Path, calls: Path) -> None:
    says(home, '[report]\nvmlinux = "kernels/vmlinux"\n')
    outcome = staticcall("report", calls)
    assert (outcome.code, str(home / "kernels/vmlinux") in outcome.err) == (3, True), outcome


@pytest.mark.parametrize("command", [("report",), ("report", "--line=64"), ("diff",)], ids=" ".join)
def test_the_file_is_named_where_one_wants_to_know_more(
    command: tuple[str, ...], home: Path, calls: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = says(home, "verbose = false")
    files = [str(calls)] * (2 if "diff" in command else 1)

    def logged(*options: str) -> str:
        assert run([*command, *options, *files]) == 0
        return capsys.readouterr().err

    assert logged() == ""
    assert logged("-v").startswith(f"staticcall: info: options from {path}\n")
    assert str(path) not in logged("-v", "--no-config")


def test_commands_that_take_nothing_from_it_do_not_read_it(home: Path) -> None:
    says(home, "nonsense")
    for words in (("schema",), ("schema", "config"), ("completion", "bash"), ("report", "--help"), ("--version",)):
        succeed(*words)


def test_without_a_file_nothing_is_imported_for_it(home: Path, calls: Path) -> None:
    code = (
        "import sys; from staticcall.cli.entry import run; run(['report', '--quiet', sys.argv[1]]);"
        "print([name for name in ('click', 'tomllib', 'difflib', 'staticcall.cli.settings') if name in sys.modules])"
    )

    def imported() -> str:
        return subprocess.run([sys.executable, "-c", code, calls], capture_output=True, text=True, check=True).stdout

    assert imported() == "[]\n"
    says(home, "line = 8")
    assert imported() == "['tomllib', 'staticcall.cli.settings']\n"


# ---- what it may not say ----


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("polizy = 'kernel'", 1, "unknown name polizy, did you mean policy?"),
        ("\n\nline = 48", 3, "one of 8, 16, 32"),
        ("line = '64'", 1, "one of 8, 16, 32"),
        ("line = true", 1, "one of 8"),
        ("jobs = 0", 1, "a number of 1 or more"),
        ("policy = 3", 1, "a text"),
        ("policy = 'nobody'", 1, "one of lutomirski"),
        ("key = ''", 1, "a text"),
        ('vmlinux = "a\\u0000b"', 1, "a text"),
        ("verbose = 1", 1, "true or false"),
        ("report = 3", 1, "a table"),
        pytest.param("x" * 50_000 + " = 1", 1, "unknown name xxx", id="long"),
        ("[reprt]", 1, "did you mean report "),
        ("line = 8\n[report]\nscann = true", 3, "unknown name scann in [report], did you mean scan?"),
        ("[report]\nfail-on = 'worst'", 2, "one of note, warning, error, never"),
        ("report.fail-on = 'worst'", 1, "one of note"),
        ("[report]\nformat = 'text'\n'hash' = 'x'", 3, "true or false"),
        ("report = {hash = 3}", None, "true or false"),
        # Other readers of lines begin one anew there.
        ("# \x85 \u2028\nline = 3", 2, "one of 8"),
    ],
)
def test_what_it_cannot_say_is_one_line_with_a_number(
    text: str, line: int | None, words: str, home: Path, calls: Path
) -> None:
    path = says(home, text)
    for options in ((), ("--line=64",)):
        outcome = staticcall("report", *options, calls)
        assert one_line(outcome, path) == 2
        assert words in outcome.err
        assert (f": line {line} " in outcome.err) if line else (": line " not in outcome.err)


UNSETTABLE = [
    (name, setting)
    for name in COMMANDS
    for setting in settings_of_command(command_named(name)).values()
    if setting.name not in ("version", "no-config") and why_not(name, setting.name)
]


@pytest.mark.parametrize(("command", "setting"), UNSETTABLE, ids=lambda case: getattr(case, "name", case))
def test_outputs_and_safeguards_are_for_the_command_line(
    command: str, setting: Setting, home: Path, program: Path
) -> None:
    value = good(setting)
    path = says(home, f"[{command}]\n{setting.name} = {json.dumps(value)}\n")
    files = [str(program)] * sum(param.param_type_name == "argument" for param in command_named(command).params)
    extra = {"check-memory": ["--core", "x"], "revert": ["--edits", "x"]}.get(command, [])
    outcome = staticcall(command, *extra, *files)
    assert one_line(outcome, path) == 2
    assert f"line 2 may not set {setting.name} for {command}" in outcome.err
    assert names_in(program.parent) == {"program"}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({command: {setting.name: value}}, schema("config"))


def test_nothing_else_that_writes_or_runs_can_be_set() -> None:
    """Whoever adds an option that takes a path says here that it is only read."""
    paths = {
        (command, setting.name)
        for command in COMMANDS
        for setting in settings_of_command(command_named(command)).values()
        if setting.kind == "path" and not why_not(command, setting.name)
    }
    looks = {"system-map", "debug-file", "debug-dir", "vmlinux", "modules"}
    both = {(command, name) for command in ("report", "explain", "diff", "patch") for name in looks}
    read = {
        ("report", "edits"),
        ("explain", "edits"),
        ("patch", "relocs"),
        ("revert", "edits"),
        ("check-memory", "core"),
    }
    assert paths == both | read


def one_line(outcome: Outcome, path: Path) -> int:
    assert outcome.out == ""
    assert outcome.err.startswith(f"staticcall: {path}: ")
    assert outcome.err.count("\n") == 1
    assert len(outcome.err) < 600
    return outcome.code
