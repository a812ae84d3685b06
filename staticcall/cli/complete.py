"""What a shell asks while somebody types: click's completion, by scripts that pass on what click's do not.

A script gives the line before and behind the cursor in two environment variables: click's own give words that bash has
split at `=`, and not what is behind the cursor, where the file may be whose keys are to be completed. The answer is
lines of kind, value and help with tabs between them. Nothing is ever said on standard error, nothing is written, and
after some seconds there is no answer.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

from click.shell_completion import CompletionItem, ShellComplete, split_arg_string

from staticcall.cli.entry import COMPLETE
from staticcall.cli.main import cli
from staticcall.cli.outcome import say
from staticcall.cli.scripts import SCRIPTS

BEFORE, AFTER, BREAKS = "_STATICCALL_BEFORE", "_STATICCALL_AFTER", "_STATICCALL_BREAKS"
# Of work, and of waiting for a disk or a busy machine.
_LIMITS = ((signal.ITIMER_PROF, signal.SIGPROF, 3.0), (signal.ITIMER_REAL, signal.SIGALRM, 20.0))
_MARK = "\x01"
# What fits beside a name.
_HELP = 80


class _Shell(ShellComplete):
    """A shell of the `SCRIPTS`: what is before the cursor, and what to give it back."""

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the cursor, and the one that the cursor is in up to there."""
        *words, last = split_arg_string(os.environ.get(BEFORE, "") + _MARK)
        return words[1:], last.removesuffix(_MARK)

    def complete(self) -> str:
        """The answer; each shell replaces another part of the word."""
        arguments, word = self.get_completion_args()
        option = word[: word.index("=") + 1] if word.startswith("--") and "=" in word else ""
        value = word[len(option) :]
        begun = 0
        if self.name == "zsh" or "=" in os.environ.get(BREAKS, ""):
            option = ""
        if "=" in os.environ.get(BREAKS, ""):
            begun = value.rfind("=") + 1
        # What is behind the cursor goes along; the words before it the context has.
        rest = split_arg_string(_MARK + os.environ.get(AFTER, ""))[1:]
        self.ctx_args["obj"] = [*arguments, *rest]
        items = self.get_completions(arguments, word)
        return "".join(_line(item, option, begun, value) for item in items)


def _line(item: CompletionItem[str], option: str, begun: int, value: str) -> str:
    """One line of the answer; for files the word so far, since it is the shell that looks for them."""
    text = value if item.type in ("file", "dir") else item.value[begun:]
    help_ = (item.help or "").split(". ")[0]
    help_ = help_ if help_.endswith("..") else help_.removesuffix(".")
    return f"{item.type}\t{option}{text}\t{help_ if len(help_) <= _HELP else help_[: _HELP - 3] + '...'}\n"


def answer(shell: str) -> str:
    """What a shell is told about the line that the environment holds."""
    answering = _Shell(cli, {}, "staticcall", COMPLETE)
    answering.name = shell  # type: ignore[misc]  # one class for all shells: their differences are in the scripts
    return answering.complete()


def complete(shell: str) -> int:
    """Answer a shell; returns the exit code."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    for timer, number, seconds in _LIMITS:
        signal.signal(number, _give_up)
        signal.setitimer(timer, seconds)
    if shell not in SCRIPTS:
        return 1
    try:
        say(answer(shell))
        sys.stdout.flush()
    except Exception:
        return 1
    return 0


def _give_up(*_: object) -> NoReturn:
    os._exit(1)
