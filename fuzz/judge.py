"""Runs one case as a user would, in this process, and says what it did that it must not.

    judge = Judge(home)
    outcome = judge.run(case)
    outcome.problems        nothing, where all went as it should, however the run ended

A run must end with an exit code of its command, within two seconds of processor time and in 100 MB and ten times its
input, unpacked, on top of what the process has (of a codec's dictionary only what is used counts); with one line on
standard error where it fails, and then nothing on standard output, nothing new in the folder, and no file touched.
Whatever comes of it, no program is started, nothing is compiled or imported from a file, and nothing outside of the
folder of the output is opened for writing, removed or renamed: symbolic links that lead out of there are not followed.
The one exception is what stands for TMPDIR, where nothing may be left.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from base64 import b64decode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from hashlib import sha256
from importlib import import_module
from io import StringIO
from pathlib import Path
from types import FrameType
from typing import Any, Final, NamedTuple

from fuzz.cases import BAD, FILES, FOLDER, OUT, Case
from fuzz.seed import ORIGINAL, PATCHED, UNDO
from fuzz.watch import Watch

SECONDS = 2.0
MEMORY, MEMORY_PER_BYTE = 100 << 20, 10
# What codecs reserve for a dictionary, at most; they use as much of it as there is to unpack.
_DICTIONARIES = (1 << 30) + (256 << 20)
# What holds many files, whatever the damaged file was before.
_HOLDING: Final = (b"070701", b"070702", b"!<arch>\ndebian-binary")
_LINK = "link"
# What the tool imports late: it takes memory by the number of processors, and none of it is the input's fault.
_LIBRARIES: Final = ("numpy", "capstone", "lief", "elftools.elf.elffile")


class StuckError(BaseException):
    """Not an `Exception`, and so nothing that the tool would take for a failure of its own."""


class Outcome(NamedTuple):
    """What a run came to."""

    code: int
    seconds: float
    """Of processor time, all threads."""
    problems: tuple[str, ...]
    """Each begins with a word or two that stay the same for the same mistake."""
    out: str = ""
    err: str = ""
    growth: int = 0
    """By how many bytes the process was larger than ever before."""


_watches: list[Watch] = []


class Judge:
    """A folder to work in, with a link that leads out of it."""

    def __init__(self, home: Path, *, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self.folder, outside = home.resolve() / "room", home.resolve() / "outside"
        self.temporary = home.resolve() / "temporary"
        for folder in (self.folder, outside, self.temporary):
            folder.mkdir(parents=True)
        self._canary = outside / "canary"
        self._canary.write_text("nobody writes here")
        (self.folder / _LINK).symlink_to(self._canary)
        self._canary_sign = _sign(self._canary)
        for name in _LIBRARIES:
            import_module(name)
        if not _watches:
            _watches.append(Watch())
        self._watch = _watches[0]
        self._peak = 0

    def run(self, case: Case, *, thorough: bool = True) -> Outcome:
        """Run a case and judge it.

        What was written is held against the undo file and reverted; with `thorough` other commands see it too.
        """
        self.put(case)
        outcome = self._guarded(case, self.arguments(case))
        if not outcome.problems and outcome.code in (0, 1) and case.operation.startswith(("patch", "annotate")):
            outcome = outcome._replace(problems=tuple(self._follow(case, thorough=thorough)))
        return outcome

    def path(self, *names: str) -> Path:
        """Where a case's file is."""
        return self.folder.joinpath(*names)

    def put(self, case: Case) -> None:
        """Have a case's files in the folder, and nothing else but the links."""
        for entry in os.scandir(self.folder):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            elif entry.name != _LINK:
                self.path(entry.name).unlink()
        if FOLDER in case.arguments:
            self.path(FOLDER).mkdir()
            self.path(FOLDER, BAD).symlink_to(self._canary)
        for name, content in case.files.items():
            self.path(name).parent.mkdir(exist_ok=True)
            self.path(name).write_bytes(content)

    def arguments(self, case: Case) -> list[str]:
        """The arguments of a case, its files by their paths."""
        return [str(self.folder / word) if word.partition("(")[0] in FILES else word for word in case.arguments]

    def _guarded(self, case: Case, arguments: list[str]) -> Outcome:
        before = {entry.name: _sign(entry) for entry in os.scandir(self.folder)}
        memory = MEMORY + MEMORY_PER_BYTE * (sum(map(len, case.files.values())) + case.inside)
        out, err = StringIO(), StringIO()
        problems: list[str] = []
        code = -1
        peak = self._peak
        held = _forget_peak()
        start = time.process_time()
        tempfile.tempdir = str(self.temporary)
        with (
            self._watch.of(self.folder, self.temporary) as seen,
            _limits(memory + (_DICTIONARIES if case.inside else 0), self._seconds),
        ):
            try:
                with redirect_stdout(out), redirect_stderr(err):
                    code = int(_entry()(arguments))
            except StuckError:
                problems.append(f"stuck: {_place(sys.exc_info()[2])}")
            except (Exception, SystemExit) as error:
                problems.append(f"traceback: {type(error).__name__} {_place(error.__traceback__)}: {error!r:.200}")
        seconds = time.process_time() - start
        grown = _peak() - held
        self._peak = max(peak, held + grown)
        if grown > memory:
            problems.append(f"memory: {grown >> 20} MiB more than before")
        problems += sorted(set(seen))
        if left := [path.name for path in self.temporary.iterdir()]:
            problems.append(f"temporary files left: {left}")
            shutil.rmtree(self.temporary)
            self.temporary.mkdir()
        if not problems:
            problems += self._looked_at(case, code, out.getvalue(), err.getvalue(), before)
        if seconds > self._seconds and not problems:
            problems.append(f"slow: {seconds:.1f} s")
        return Outcome(code, seconds, tuple(problems), out.getvalue(), err.getvalue(), self._peak - peak)

    def _looked_at(
        self, case: Case, code: int, out: str, err: str, before: dict[str, tuple[int, ...]]
    ) -> Iterator[str]:
        if code not in case.codes:
            yield f"exit code {code}: {err[-300:]}"
        if "not enough memory" in err:
            yield f"memory: {err[-300:]}"
        after = {entry.name: _sign(entry) for entry in os.scandir(self.folder)}
        allowed = case.outputs if code in (0, 1) else frozenset[str]()
        if strays := after.keys() - before.keys() - allowed:
            yield f"stray files: {sorted(strays)}"
        changed = {name for name in before.keys() - {FOLDER} if after.get(name) != before[name]}
        inside = [path.name for path in self.path(FOLDER).iterdir()] if FOLDER in before else [BAD]
        if inside != [BAD]:
            yield f"stray files: {inside}"
        if changed - (case.changes if code in (0, 1) else set()):
            yield f"touched: {sorted(changed)}"
        if _sign(self._canary) != self._canary_sign:
            yield "touched outside"
        yield from _said(case, code, out, err)

    def _follow(self, case: Case, *, thorough: bool) -> Iterator[str]:
        """See that what was made is what it should be, by other means and by the other commands."""
        made = self.path(FOLDER, BAD) if FOLDER in case.arguments else self.path(OUT if OUT in case.outputs else BAD)
        if "--dry-run" in case.arguments:
            return
        if "(" in case.arguments[1]:
            return  # a member, whose original is not at hand
        original = case.files[BAD if case.operation.startswith("annotate") else case.arguments[1]]
        result = made.read_bytes()
        yield from _sane(original, result)
        if case.operation.startswith("annotate"):
            if thorough:
                yield from self._again(result)
            return
        if UNDO in case.outputs:
            yield from _as_said(original, result, self.path(UNDO).read_bytes())
            yield from self._reverted(case, original, result)
        if thorough and not {"--strip-signature", "kaslr-slot"} & {*case.arguments}:
            yield from self._verified(case, original, result)

    def _again(self, result: bytes) -> Iterator[str]:
        """An annotated object is left as it is, and can be reported."""
        again = Case("annotate again", {BAD: result}, ("annotate", BAD, "-o", OUT), frozenset({0}), frozenset({OUT}))
        self.put(again)
        yield from self._guarded(again, self.arguments(again)).problems
        if self.path(OUT).read_bytes() != result:
            yield "annotated twice: differs"

    def _reverted(self, case: Case, original: bytes, result: bytes) -> Iterator[str]:
        undo = self.path(UNDO).read_bytes()
        files = {PATCHED: result, UNDO: undo}
        back = Case("revert", files, ("revert", PATCHED, "--edits", UNDO, "-o", OUT), frozenset({0}), frozenset({OUT}))
        self.put(back)
        yield from (f"not reverted: {problem}" for problem in self._guarded(back, self.arguments(back)).problems)
        if not self.path(OUT).exists() or self.path(OUT).read_bytes() != original:
            yield f"not reverted: differs ({case.operation})"

    def _verified(self, case: Case, original: bytes, result: bytes) -> Iterator[str]:
        # As patch was told where the records are, so is verify; names it does not take.
        if any(word.startswith("--table") for word in case.arguments):
            return
        files = {ORIGINAL: original, BAD: result}
        proof = Case("verify", files, ("verify", ORIGINAL, BAD), frozenset({0}))
        self.put(proof)
        yield from (f"not proved: {problem}" for problem in self._guarded(proof, self.arguments(proof)).problems)


def _entry() -> Callable[[Sequence[str]], int]:
    from staticcall.cli.entry import run  # noqa: PLC0415 - whoever measures coverage has to import it first

    return run


def _said(case: Case, code: int, out: str, err: str) -> Iterator[str]:
    """What is wrong with what was printed."""
    if "-v" in case.arguments:
        # What is done is logged there.
        lines = err.splitlines(keepends=True)
        logged = [line for line in lines if line.startswith("staticcall: info: ")]
        if not all(line[:-1].isprintable() for line in logged):
            yield f"unprintable log: {err[:500]!r}"
        err = "".join(line for line in lines if line not in logged)
    if code in (0, 1):
        if err:
            yield f"standard error of a success: {err[:300]!r}"
        yield from _readable(case, out)
        return
    if case.several or case.files.get(BAD, b"").startswith(_HOLDING):
        if not err or not all(line.startswith("staticcall: ") and line.isprintable() for line in err.splitlines()):
            yield f"not lines: {err[:500]!r}"
        return
    if not err.startswith("staticcall: ") or not err.endswith("\n") or len(err.splitlines()) != 1:
        yield f"not one line: {err[:500]!r}"
    if not err[:-1].isprintable():
        yield f"unprintable line: {err[:500]!r}"
    if out:
        yield f"output of a failure: {out[:300]!r}"


def _readable(case: Case, out: str) -> Iterator[str]:
    if OUT not in case.outputs and out and case.operation.startswith(("report", "explain")):
        try:
            if "json" in case.operation:
                for document in out.splitlines() if "jsonl" in case.operation else [out]:
                    json.loads(document)
            elif not all(line.isprintable() for line in out.split("\n")):
                yield f"unprintable report: {out[:300]!r}"
        except ValueError as error:
            yield f"no JSON: {error}"


def _sane(original: bytes, result: bytes) -> Iterator[str]:
    """What `readelf -h` would look at first."""
    if original.startswith(b"!<arch>"):
        if not result.startswith(b"!<arch>"):
            yield "no archive any more"
        return
    if result == original:
        return  # whatever it is: what has nothing to annotate is copied
    if not original.startswith(b"\x7fELF"):
        if result[:2] != original[:2]:
            yield "another format"
        return
    if result[:40] != original[:40] or len(result) < 64:
        yield "another ELF header"
        return
    offset, count = int.from_bytes(result[40:48], "little"), int.from_bytes(result[60:62], "little")
    if offset + 64 * count > len(result):
        yield "section headers beyond the end"


def _as_said(original: bytes, result: bytes, undo: bytes) -> Iterator[str]:
    """The undo file tells the whole difference."""
    document = json.loads(undo)
    digests = document["original_sha256"], document["patched_sha256"]
    if digests != (sha256(original).hexdigest(), sha256(result).hexdigest()):
        yield "undo file: has other digests"
    if "container" in document:
        outer = document["container"]
        start, old = outer["file_offset"], b64decode(outer["old"])
        if result[:start] + old + result[start + outer["new_size"] :] != original:
            yield "undo file: another container"
        return
    data = bytearray(original)
    for edit in sorted(document["edits"], key=lambda one: -int(one["file_offset"])):
        at, old, new = edit["file_offset"], bytes.fromhex(edit["old"]), bytes.fromhex(edit["new"])
        if data[at : at + len(old)] != old:
            yield f"undo file: other bytes at {at:#x}"
        data[at : at + len(old)] = new
    if bytes(data) != result:
        yield "undo file: another result"


def _sign(path: Path | os.DirEntry[str]) -> tuple[int, ...]:
    status = os.lstat(path)
    return (status.st_mode, status.st_ino, status.st_size, status.st_mtime_ns)


def _place(trace: Any) -> str:
    """Where it happened: the last places in the tool, and the very last."""
    frames = traceback.extract_tb(trace)
    own = [frame for frame in frames if "staticcall" in Path(frame.filename).parts][-2:]
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed([*own, *frames[-1:]]))


def _forget_peak() -> int:
    """Let `_peak` begin anew; gives what the process has now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@contextmanager
def _limits(memory: int, seconds: float) -> Iterator[None]:
    """No more memory than so many bytes on top of what the process has, and a signal after so much processor time."""

    def ring(_number: int, _frame: FrameType | None) -> None:
        raise StuckError

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
