"""The kernel's own build tool as an oracle: what it makes of an object's static calls.

outcome = annotate(tool, original, copy, module=True)
elf_object.records(elf_object.read(copy)), outcome.said
"""

import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from tests.support.toolchain import TIMEOUT_SECONDS

# Said of what `ld -r` made.
_NO_COMPLAINT = "Linked object detected, forcing --link"


class Outcome(NamedTuple):
    """How a run of objtool ended, and its complaints."""

    code: int
    said: str


def annotate(objtool: Path, original: Path, copy: Path, *, module: bool = False) -> Outcome:
    """Let objtool annotate a copy of an object; it writes in place, and may end well and leave a broken table."""
    shutil.copy(original, copy)
    options = ["--static-call", *(["--module"] if module else [])]
    done = subprocess.run(
        [objtool, *options, copy],
        env={**os.environ, "LC_ALL": "C", "SRCARCH": "x86"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    said = [line for line in (done.stdout + done.stderr).splitlines() if not line.endswith(_NO_COMPLAINT)]
    return Outcome(done.returncode, "\n".join(said))
