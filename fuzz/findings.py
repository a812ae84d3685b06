"""What went wrong, each kind once and as small as it gets, in a folder of its own: the files and the arguments.

python -m fuzz --replay build/fuzz/findings/<name>
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from itertools import islice
from pathlib import Path

from fuzz.cases import BAD, Case
from fuzz.judge import Judge, Outcome

_MOST_TRIES = 400


class Findings:
    """A folder of findings; the first of every kind is made small and kept, the others are counted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.counts: Counter[str] = Counter()

    def add(self, case: Case, origin: str, problems: tuple[str, ...], judge: Judge | None, sound: bytes | None) -> None:
        """Keep a case; with a judge and the sound file it is made small first."""
        for problem in problems:
            kind = kind_of(problem)
            self.counts[kind] += 1
            if self.counts[kind] == 1:
                small = smaller(case, problem, judge, sound) if judge is not None and sound is not None else case
                self._save(small, origin, problem)

    def _save(self, case: Case, origin: str, problem: str) -> None:
        folder = self.folder / sha256(kind_of(problem).encode("utf-8", "replace")).hexdigest()[:12]
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in case.files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
        described = {
            "problem": problem,
            "origin": origin,
            "operation": case.operation,
            "arguments": case.arguments,
            "codes": sorted(case.codes),
            "outputs": sorted(case.outputs),
            "changes": sorted(case.changes),
            "several": case.several,
            "inside": case.inside,
            "files": sorted(case.files),
        }
        (folder / "case.json").write_text(json.dumps(described, indent=1) + "\n", encoding="ascii")


def kind_of(problem: str) -> str:
    """What is the same for the same mistake: the problem without what varies from file to file."""
    return (
        re.sub(r"0x[0-9a-f]+|[0-9]{2,}(?!:)|/\S+", "*", problem[:160])
        if not problem.startswith("traceback")
        else problem[:90]
    )


def load(folder: Path) -> Case:
    """A finding again."""
    said = json.loads((folder / "case.json").read_text(encoding="ascii"))
    files = {name: (folder / name).read_bytes() for name in said["files"]}
    codes, outputs, changes = (frozenset(said[name]) for name in ("codes", "outputs", "changes"))
    arguments = tuple(said["arguments"])
    return Case(said["operation"], files, arguments, codes, outputs, changes, said["several"], said["inside"])


def smaller(case: Case, problem: str, judge: Judge, sound: bytes) -> Case:
    """The same case with as many bytes as possible as they are in the sound file."""
    if BAD not in case.files:
        return case  # in a folder
    kind, best = kind_of(problem), bytearray(case.files[BAD])
    if len(best) > len(sound):
        best = _shorter(case, kind, judge, best, len(sound))
    for start, end in islice(_differences(bytes(best), sound), _MOST_TRIES):
        trial = bytearray(best)
        trial[start:end] = sound[start:end]
        if _still(judge, case, bytes(trial), kind):
            best = trial
    return _with(case, bytes(best))


def _shorter(case: Case, kind: str, judge: Judge, best: bytearray, size: int) -> bytearray:
    """Without what was added at the end, where that is not what does it."""
    trial = best[:size]
    return trial if _still(judge, case, bytes(trial), kind) else best


def _differences(data: bytes, sound: bytes) -> Iterator[tuple[int, int]]:
    """Ranges that differ, no more than eight bytes each."""
    at, end = 0, min(len(data), len(sound))
    while at < end:
        if data[at] == sound[at]:
            at += 1
            continue
        stop = at + 1
        while stop < end and stop - at < 8 and data[stop] != sound[stop]:
            stop += 1
        yield at, stop
        at = stop


def _still(judge: Judge, case: Case, content: bytes, kind: str) -> bool:
    outcome: Outcome = judge.run(_with(case, content))
    return any(kind_of(problem) == kind for problem in outcome.problems)


def _with(case: Case, content: bytes) -> Case:
    return case._replace(files={**case.files, BAD: content})
