"""What can be written where, what must hold of the folder after a run that met a fault, and all faults in turn.

with theatre(folder, built, made) as stages:
    outcomes = sweep(stages("patch-in-place"), Kind.SIGNAL, "SIGKILL")
    assert outcomes["old"] + outcomes["new"] == sum(outcomes.values())
"""

from __future__ import annotations

import lzma
import re
import shutil
import signal
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Final, NamedTuple

from tests.support.archives import ask
from tests.support.objects import Objects
from tests.support.programs import Builder
from tests.support.tool import succeed
from tests.support.user_objects import Workshop
from tests.support.write_faults import NO_FAULT, Calls, Done, Fault, Faulty, Kind, build_shim

_TEMPORARY: Final = re.compile(r"\.(?P<name>.+)\.[0-7]\.staticcall")
LINKED: Final = ("--set", "alpha=alpha_fast")
IN_OBJECT: Final = ("--set", "alpha=plus_two")
SCENES: Final = (
    *("patch", "patch-new", "patch-in-place", "patch-object", "patch-object-in-place", "annotate", "annotate-in-place"),
    *("annotate-folder", "annotate-archive", "revert", "revert-in-place", "report"),
    *("patch-packed-in-place", "revert-packed"),
)
# Calls that want room on the disk; a full one may take what is smaller.
_ROOM: Final = {"create", "write", "pwrite64", "copy_file_range", "fsync", "rename", "renameat2"}
# Calls that may do less than asked.
_MOVING: Final = {"write", "pwrite64", "copy_file_range"}


class Content(NamedTuple):
    """A file's bytes and mode."""

    data: bytes
    mode: int


Files = Mapping[str, Content]


class Scene(NamedTuple):
    """A command, the files that are there before, and those that it writes, in the order of their publication.

    `arguments` have `{}` where the folder's path comes. The last of `outputs` is the one that the others belong to.
    """

    arguments: tuple[str, ...]
    before: Files
    outputs: tuple[str, ...]


def contents(folder: Path) -> dict[str, Content]:
    """All files of a folder; a link counts as what it is."""
    return {path.name: content_of(path) for path in folder.iterdir() if path.is_file()}


def content_of(path: Path) -> Content:
    return Content(path.read_bytes(), stat.S_IMODE(path.lstat().st_mode))


def scenes(program: Path, unpatched: Path, plain: Path, archive: Path, folder: Path) -> dict[str, Scene]:
    """All commands that write, on small inputs; whatever they write is there already, and is something else.

    `program` is linked, `unpatched` an object with its table, `plain` one without, `archive` has such objects. Works
    in `folder` for what has to be patched first.
    """
    patched, edits = folder / "patched", folder / "edits"
    succeed("patch", program, "-o", patched, "--edits", edits, *LINKED)
    grown, grown_edits = folder / "grown.o", folder / "grown-edits"
    succeed("patch", unpatched, "-o", grown, "--edits", grown_edits, *IN_OBJECT)
    packed, packed_edits = folder / "packed", folder / "packed-edits"
    packed.write_bytes(lzma.compress(program.read_bytes(), check=lzma.CHECK_CRC32))
    in_packed = Content(packed.read_bytes(), 0o640)
    succeed("patch", packed, "--in-place", "--edits", packed_edits, *LINKED)
    unpacked = {"patched": content_of(packed), "edits": content_of(packed_edits)}
    old = Content(b"something older", 0o640)
    linked, in_object = (Content(path.read_bytes(), 0o751) for path in (program, unpatched))
    beside = ("-o", "{}/out", "--edits", "{}/edits", "--report", "{}/report")
    in_place = ("--in-place", "--edits", "{}/edits")
    others = {"edits": old, "report": old}
    written = ("edits", "report", "out")
    undone = {"patched": content_of(patched), "edits": content_of(edits)}
    shrunk = {"grown.o": content_of(grown), "edits": content_of(grown_edits)}
    return {
        "patch": Scene(("patch", "{}/in", *beside, *LINKED), {"in": linked, "out": old, **others}, written),
        "patch-new": Scene(("patch", "{}/in", *beside[:4], *LINKED), {"in": linked}, ("edits", "out")),
        "patch-in-place": Scene(("patch", "{}/in", *in_place, *LINKED), {"in": linked, "edits": old}, ("edits", "in")),
        "patch-object": Scene(
            ("patch", "{}/in", *beside, *IN_OBJECT), {"in": in_object, "out": old, **others}, written
        ),
        "patch-object-in-place": Scene(("patch", "{}/in", *in_place, *IN_OBJECT), {"in": in_object}, ("edits", "in")),
        "annotate": Scene(
            ("annotate", "{}/in.o", "-o", "{}/out.o"), {"in.o": content_of(plain), "out.o": old}, ("out.o",)
        ),
        "annotate-in-place": Scene(("annotate", "--in-place", "{}/in.o"), {"in.o": content_of(plain)}, ("in.o",)),
        "annotate-folder": Scene(("annotate", "--output-dir", "{}", str(plain)), {plain.name: old}, (plain.name,)),
        "annotate-archive": Scene(("annotate", "--in-place", "{}/lib.a"), {"lib.a": content_of(archive)}, ("lib.a",)),
        "revert": Scene(("revert", "{}/patched", "--edits", "{}/edits", "-o", "{}/out"), undone, ("out",)),
        "revert-in-place": Scene(("revert", "{}/grown.o", "--edits", "{}/edits", "--in-place"), shrunk, ("grown.o",)),
        "report": Scene(
            ("report", "--format", "json", "--output", "{}/out", "{}/in"), {"in": linked, "out": old}, ("out",)
        ),
        "patch-packed-in-place": Scene(
            ("patch", "{}/in", *in_place, *LINKED), {"in": in_packed, "edits": old}, ("edits", "in")
        ),
        "revert-packed": Scene(("revert", "{}/patched", "--edits", "{}/edits", "-o", "{}/out"), unpacked, ("out",)),
    }


class Stage:
    """A scene in a folder, with what a run without faults makes of it."""

    def __init__(self, scene: Scene, folder: Path, faulty: Faulty) -> None:
        self._scene = scene
        self._folder = folder
        self._faulty = faulty
        self._arguments = [argument.format(folder) for argument in scene.arguments]
        self._known: set[tuple[tuple[str, Content], ...]] = set()
        self._restore()
        faulty.warm(*self._arguments)
        self.good = self.run(calls=Calls.WRITING)
        assert (self.good.code, self.good.err) == (0, ""), self.good
        self.after = contents(folder)
        assert self.after.keys() == scene.before.keys() | set(scene.outputs)
        assert all(self.after[name] != scene.before.get(name) for name in scene.outputs)

    def run(self, fault: Fault = NO_FAULT, calls: Calls = Calls.WRITING) -> Done:
        """One run from the start."""
        self._restore()
        return self._faulty.run(*self._arguments, folder=self._folder, fault=fault, calls=calls)

    def _restore(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        for name, content in self._scene.before.items():
            (self._folder / name).write_bytes(content.data)
            (self._folder / name).chmod(content.mode)

    def is_new(self) -> bool:
        """Whether the file that all is about has been published; sees to it that nothing is torn on the way.

        Every file is the old or the new one, and the output is never new without its undo file and its report.
        """
        now = contents(self._folder)
        new = []
        for name in self._scene.outputs:
            assert now.get(name) in (self._scene.before.get(name), self.after[name]), f"{name} is torn"
            new.append(now.get(name) == self.after[name])
        assert new == sorted(new, reverse=True), f"published in another order: {new}"
        for name in self._scene.before.keys() - set(self._scene.outputs):
            assert now[name] == self._scene.before[name], f"{name} is changed"
        return new[-1]

    def is_untouched(self) -> bool:
        """Whether all is as before, but for temporary files."""
        now = contents(self._folder)
        return {name: now[name] for name in now.keys() - set(self.strays())} == dict(self._scene.before)

    def strays(self) -> list[str]:
        """The files that are none of the expected ones; they have to be temporary ones of the outputs."""
        names = [path.name for path in self._folder.iterdir() if path.name not in self.after]
        for name in names:
            match = _TEMPORARY.fullmatch(name)
            assert match, name
            assert match["name"] in self._scene.outputs, name
        return names

    def check_next_run(self) -> None:
        """See that the next run makes all good, unless that was seen with a folder in this very state."""
        state = tuple(sorted(contents(self._folder).items()))
        if state in self._known:
            return
        self._known.add(state)
        was_new = self.is_new()
        done = self._faulty.run(*self._arguments, folder=self._folder)
        # What is reverted already is not what the undo file belongs to.
        reverted = was_new and self._scene.arguments[0] == "revert" and "--in-place" in self._scene.arguments
        assert done.code == (4 if reverted else 0), done
        assert not self.strays()
        output = self._scene.outputs[-1]
        assert contents(self._folder)[output] == self.after[output]


@contextmanager
def theatre(folder: Path, built: Builder, made: Objects) -> Iterator[Callable[[str], Stage]]:
    """Everything that faults are tried on, in a folder; gives the stage of each scene."""
    materials = folder / "materials"
    materials.mkdir()
    plain = Path(shutil.copy(made("calls"), materials / "plain.o"))
    archive = materials / "lib.a"
    ask("ar", "qcsD", str(archive), str(plain), str(made("prefixed")))
    unpatched = Workshop(materials).object()
    all_scenes = scenes(built("calls", "pie"), unpatched, plain, archive, materials)
    assert set(all_scenes) == set(SCENES)
    stages: dict[str, Stage] = {}
    with Faulty(build_shim(materials)) as faulty:

        def stage(name: str) -> Stage:
            if name not in stages:
                stages[name] = Stage(all_scenes[name], folder / "arena", faulty)
            return stages[name]

        yield stage


def sweep(stage: Stage, kind: Kind, name: str = "", calls: Calls = Calls.WRITING) -> Counter[str]:
    """One run for every call of a scene, each with the fault there, judged; gives what they came to.

    `old` and `new` of runs that ended by a signal, `refused` and `done` of the others, and in brackets that a
    temporary file stayed behind, which the next run then removed. `half done` is a run that could not take back the
    undo file or the report, and said so.
    """
    outcomes: Counter[str] = Counter()
    for at in count(1):
        if kind is Kind.ERROR_FROM_HERE and at <= len(stage.good.calls) and stage.good.calls[at - 1] not in _ROOM:
            continue  # the same as at the next one
        if kind is Kind.SHORT and at <= len(stage.good.calls) and stage.good.calls[at - 1] not in _MOVING:
            continue
        fault = Fault(at, kind, name)
        done = stage.run(fault, calls)
        if done.code >= 0 and not done.hit:
            return outcomes
        outcomes[judge(stage, fault, done)] += 1
    raise AssertionError


def judge(stage: Stage, fault: Fault, done: Done) -> str:
    """What a run came to; raises `AssertionError` where that must not be."""
    is_new, strays = stage.is_new(), stage.strays()
    where = (fault, stage.good.calls[fault.at - 1 : fault.at], done, strays)
    if fault.kind is Kind.SIGNAL:
        assert (done.code, done.out and not is_new, done.err) == (-fault.value, "", ""), where
        assert not strays or fault.value == signal.SIGKILL, where
        outcome = "new" if is_new else "old"
    elif done.code == 0:
        assert is_new, where
        assert done.err == "", where
        outcome = "done"
    else:
        assert done.code == 3, where
        assert done.err.count("\n") == 1, where
        assert re.match(r"staticcall: .+: .+", done.err), where
        outcome = "refused"
        if not stage.is_untouched():
            # What could not be taken back is at least told.
            assert "could not be taken back" in done.err, where
            assert not is_new, where
            outcome = "half done"
    if strays:
        # Nobody is left to remove it, or removing it is what failed.
        assert fault.value == signal.SIGKILL or "unlink" in done.calls, where
        outcome += " (stray)"
    stage.check_next_run()
    return outcome
