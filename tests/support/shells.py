"""bash, zsh and fish as somebody sits in front of them: what a line becomes when Tab is pressed.

with tool(folder) as environment: the program is found as `staticcall`
bash([...]) and fish([...]) give what is offered for each line, zsh([...]) what each line becomes
"""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.toolchain import TIMEOUT_SECONDS

CURSOR = "|"
_BASH = """
source <(staticcall completion bash)
while IFS= read -r line; do
    before=${line%%'|'*}
    COMP_LINE=${line/'|'/} COMP_POINT=${#before}
    _staticcall_completion staticcall
    printf '%s\\n' "${COMPREPLY[@]}" ==
done
complete -p staticcall >/dev/null
"""
_FISH = """
staticcall completion fish | source
while read -l line
    complete -C "$line"
    echo ==
end
"""
_READY = b"ready> "


def environment(folder: Path) -> Mapping[str, str]:
    """The variables with which a shell finds the program, run by this Python, in a folder of its own."""
    bin_ = folder / "bin"
    bin_.mkdir()
    program = bin_ / "staticcall"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m staticcall "$@"\n')
    program.chmod(0o755)
    root = Path(__file__).parents[2]
    changed = {"PATH": f"{bin_}:{os.environ['PATH']}", "HOME": str(folder), "PYTHONPATH": str(root), "TERM": "dumb"}
    return {**os.environ, **changed}


def bash(lines: Sequence[str], folder: Path, variables: Mapping[str, str]) -> list[list[str]]:
    """What bash is offered for each line, with the cursor at `CURSOR` or the end."""
    return _answers(["bash", "--norc", "-c", _BASH], lines, folder, variables)


def fish(lines: Sequence[str], folder: Path, variables: Mapping[str, str]) -> list[list[str]]:
    """What fish offers for each line, with the cursor at the end, without the descriptions."""
    answers = _answers(["fish", "--no-config", "-c", _FISH], lines, folder, variables)
    return [[line.split("\t")[0] for line in answer] for answer in answers]


def _answers(
    command: Sequence[str], lines: Sequence[str], folder: Path, variables: Mapping[str, str]
) -> list[list[str]]:
    done = subprocess.run(
        command,
        input="".join(f"{line}\n" for line in lines),
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        env=variables,
        timeout=TIMEOUT_SECONDS,
    )
    assert done.stderr == ""
    answers: list[list[str]] = [[]]
    for line in done.stdout.splitlines():
        if line == "==":
            answers.append([])
        else:
            answers[-1].append(line)
    assert answers.pop() == []
    return answers


def zsh(lines: Mapping[str, str], folder: Path, variables: Mapping[str, str]) -> None:
    """Type each line and press Tab; waits until the screen shows what it is to become, or a list with that in it."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.execvpe("zsh", ["zsh", "-f", "-i"], {**variables, "PS1": "> ", "COLUMNS": "200"})  # noqa: S606 - no shell on purpose
    try:
        _until(terminal, b"> ")
        setup = (
            "unset zle_bracketed_paste; autoload -U compinit; compinit -u -D; setopt no_beep",
            "source <(staticcall completion zsh)",
            # In two pieces, so that what is typed is not taken for what is printed.
            "PS1='rea''dy> '",
        )
        os.write(terminal, "; ".join(setup).encode() + b"\n")
        _until(terminal, _READY)
        for line, becomes in lines.items():
            os.write(terminal, line.encode() + b"\t")
            _until(terminal, becomes.encode())
            os.write(terminal, b"\x15\n")  # all of the line away, and a new one
            _until(terminal, _READY)
    finally:
        os.close(terminal)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _until(terminal: int, text: bytes) -> None:
    end = time.monotonic() + TIMEOUT_SECONDS
    seen = b""
    while not re.search(re.escape(text), seen):
        left = end - time.monotonic()
        assert left > 0, f"{text!r} does not come: {seen[-2000:]!r}"
        if select.select([terminal], [], [], left)[0]:
            seen += os.read(terminal, 1 << 16)
