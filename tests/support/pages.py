"""What the tutorials of the site ask their readers to do, read from the pages themselves.

    for step in steps(page):
        step.file, step.content        a file that the reader writes, or
        step.command, step.shown       a command, and what the page shows of its output

A fence with a title is a file. A fence of `console` holds commands behind `$ `, where a backslash ends a line continued
behind `> `, and below each command its output; `...` stands for anything, on a line of its own for any number of lines.
A comment in front of a fence says more: `<!-- stand-in: NAME -->` is what a test has to bring itself, and behind `<!--
numbers vary -->` any number will do in place of one that is shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).parents[2] / "docs"

_FENCE = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]+?) -->\n)?^```(?P<language>\w*)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_NUMBER = re.compile(r"0x[0-9a-f]+|\d[\d,.]*")


class Step(NamedTuple):
    """One thing that the reader does; of `file`, `command` and `stand_in` one is not empty."""

    line: int
    file: str = ""
    content: str = ""
    command: str = ""
    shown: str = ""
    numbers_vary: bool = False
    stand_in: str = ""

    def agrees(self, output: str) -> bool:
        """Whether an output is what the page shows; where it shows nothing, anything is."""
        if not self.shown:
            return True
        pattern = "".join(self._line(line) for line in self.shown.splitlines())
        printed = "".join(line.rstrip() + "\n" for line in output.splitlines())
        return re.fullmatch(pattern, printed) is not None

    def _line(self, line: str) -> str:
        if line == "...":
            return r"(?:[^\n]*\n)*"
        return r"[^\n]*".join(map(self._words, line.rstrip().split("..."))) + "\n"

    def _words(self, text: str) -> str:
        if not self.numbers_vary:
            return re.escape(text)
        # Columns move with the widths of the numbers in them.
        words = [_escaped_numbers(word) for word in re.split(r" +", text)]
        return " +".join(words)


def _escaped_numbers(text: str) -> str:
    parts, end = [], 0
    for number in _NUMBER.finditer(text):
        parts += [re.escape(text[end : number.start()]), r"0x[0-9a-f]+" if number[0].startswith("0x") else r"\d[\d,.]*"]
        end = number.end()
    return "".join(parts) + re.escape(text[end:])


def steps(page: str) -> Iterator[Step]:
    """All that a page, by its path below `docs/`, asks for, in order; raises `ValueError` for what it cannot mean."""
    text = (DOCS / page).read_text(encoding="utf-8")
    fences = list(_FENCE.finditer(text))
    if 2 * len(fences) != len(re.findall(r"^ *```", text, re.MULTILINE)):
        raise ValueError(f"{page}: a fence that is not understood")
    for fence in fences:
        line = text.count("\n", 0, fence.start("language")) + 1
        mark = fence["mark"] or ""
        if mark.startswith("stand-in: "):
            yield Step(line, stand_in=mark.removeprefix("stand-in: "))
        elif fence["title"]:
            yield Step(line, file=fence["title"], content=fence["body"])
        elif fence["language"] == "console":
            yield from _commands(fence["body"], line, numbers_vary=mark == "numbers vary")
        else:
            raise ValueError(f"{page}:{line}: neither a file nor commands")


def _commands(body: str, line: int, *, numbers_vary: bool) -> Iterator[Step]:
    parts = re.split(r"^\$ ((?:.*\\\n> )*.+)\n", body, flags=re.MULTILINE)
    if parts[0]:
        raise ValueError(f"line {line}: output in front of the first command")
    for command, shown in zip(parts[1::2], parts[2::2], strict=True):
        yield Step(line, command=command.replace("\n> ", "\n"), shown=shown, numbers_vary=numbers_vary)
