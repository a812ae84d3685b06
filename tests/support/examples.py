"""The projects of `examples/`, copied, built by the real build tools with `staticcall` on the path, and looked at.

    story = tell(SYSTEMS["make"], tmp_path)
    assert story.first.leads("app") == {"__SCT__hash"}

A story is one life of a tree: built, built again, one source changed, a header changed. Each state is copied, so that
tests can look at all of them in any order. A second tree is built with a tool that does nothing: what the tool costs,
and what the gates must find.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

import pytest

from tests.support.tool import Outcome
from tests.support.toolchain import TIMEOUT_SECONDS, BuildError, disassemble, records

_REPOSITORY = Path(__file__).parents[2]
EXAMPLES = _REPOSITORY / "examples"
RUNTIME = _REPOSITORY / "staticcall" / "runtime"
LAUNCHER = RUNTIME / "make" / "staticcall-compile"
GATE = RUNTIME / "make" / "staticcall-gate"

# The tool as it is installed; with STATICCALL_IDLE one that annotates and binds nothing, and costs nothing.
_TOOL = """\
#!/bin/sh
if [ "$STATICCALL_IDLE" ]; then
    case $1 in
    --include-dir) echo {runtime}/include; exit ;;
    --runtime-source) echo {runtime}/staticcall.c; exit ;;
    --cmake-dir) echo {runtime}/cmake; exit ;;
    annotate | patch)
        shift
        output=
        while [ $# -gt 0 ]; do
            case $1 in
            -o) output=$2; shift ;;
            --section | --policy | --set) shift ;;
            -*) ;;
            *) input=$1 ;;
            esac
            shift
        done
        [ -z "$output" ] || exec cp "$input" "$output"
        exit 0 ;;
    esac
fi
exec {command} "$@"
"""


class System(NamedTuple):
    """A build system's example: how it is built, and where what it makes is."""

    folder: str
    configure: tuple[str, ...]
    """Run once; empty for none."""
    build: tuple[str, ...]
    gate: tuple[str, ...]
    tree: str
    """Where the outputs are, in the copy."""
    bound: str
    bound_target: str
    source: str
    """The source that is changed; `3 *` stands in it once."""
    needs: tuple[str, ...]


SYSTEMS: Final[Mapping[str, System]] = MappingProxyType(
    {
        "make": System(
            "make", (), ("make", "bound"), ("make", "check"), ".", "app.bound", "hash_sum", "work.c", ("make",)
        ),
        "ninja": System(
            "ninja",
            (),
            ("ninja", "build/app", "bound"),
            ("ninja", "check"),
            "build",
            "app.bound",
            "hash_sum",
            "work.c",
            ("ninja",),
        ),
        "meson": System(
            "meson",
            ("meson", "setup", "build"),
            ("ninja", "-C", "build"),
            ("meson", "test", "-C", "build", "--print-errorlogs"),
            "build",
            "app.bound",
            "hash_sum",
            "work.c",
            ("meson", "ninja"),
        ),
        **{
            f"cmake-{name}": System(
                "cmake",
                ("sh", "-c", f'cmake -G "{generator}" -B build "-Dstaticcall_DIR=$(staticcall --cmake-dir)"'),
                ("cmake", "--build", "build"),
                ("ctest", "--test-dir", "build", "--output-on-failure"),
                "build",
                "app_bound",
                "hash_turn",
                "work.cpp",
                ("cmake", "g++", tool),
            )
            for name, generator, tool in (("make", "Unix Makefiles", "make"), ("ninja", "Ninja", "ninja"))
        },
    }
)


def need(*tools: str) -> None:
    """See that the machine has these tools: skip on a developer's, fail where every test is meant to run."""
    missing = [program for program in ("gcc", "objdump", "readelf", *tools) if shutil.which(program) is None]
    if missing:
        reason = f"not installed: {', '.join(missing)}"
        if os.environ.get("CI"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


def environment(folder: Path) -> dict[str, str]:
    """This process's variables, with `staticcall` on the path and nothing that a build would take for its own."""
    tool = folder / "bin" / "staticcall"
    if not tool.exists():
        tool.parent.mkdir(parents=True, exist_ok=True)
        command = shlex.join([sys.executable, "-P", "-m", "staticcall"])
        text = _TOOL.replace("{command}", command).replace("{runtime}", shlex.quote(str(RUNTIME)))
        tool.write_text(text, encoding="utf-8")
        tool.chmod(0o755)
    ours = re.compile(r"MAKE.*|MFLAGS|CC|CXX|CFLAGS|CXXFLAGS|CPPFLAGS|LDFLAGS|DESTDIR|CMAKE_.*|STATICCALL.*")
    kept = {name: value for name, value in os.environ.items() if not ours.fullmatch(name)}
    return {
        **kept,
        "LC_ALL": "C",
        "PATH": f"{tool.parent}{os.pathsep}{kept['PATH']}",
        "PYTHONPATH": str(_REPOSITORY),
    }


class Project:
    """A copy of an example in a folder of its own."""

    def __init__(self, example: str, folder: Path) -> None:
        self.folder = Path(shutil.copytree(EXAMPLES / example, folder / example))
        self._environment = environment(folder)

    def outcome(self, *command: str | Path, **variables: str) -> Outcome:
        """Run a command in the project, with these environment variables too."""
        done = subprocess.run(
            list(map(str, command)),
            cwd=self.folder,
            env={**self._environment, **variables},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    def run(self, *command: str | Path, **variables: str) -> str:
        """The same; raises `BuildError` with all that was said where it does not end with 0."""
        outcome = self.outcome(*command, **variables)
        if outcome.code:
            raise BuildError(f"{command}: exit code {outcome.code}\n{outcome.out}{outcome.err}")
        return outcome.out

    def seconds(self, *command: str | Path, **variables: str) -> float:
        """The wall time of a run."""
        started = time.perf_counter()
        self.run(*command, **variables)
        return time.perf_counter() - started

    def edit(self, name: str, old: str, new: str) -> None:
        """Replace what stands in a file once."""
        path = self.folder / name
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1, (name, old)
        path.write_text(text.replace(old, new), encoding="utf-8")


class State(NamedTuple):
    """A built tree at one time: a copy of its programs, what they print, and when its objects were made."""

    programs: Mapping[str, Path]
    prints: Mapping[str, str]
    made: Mapping[str, int]
    """The objects and programs by their paths in the tree, each with its time of change in nanoseconds."""

    def leads(self, program: str) -> list[str]:
        """Where the recorded sites of a program go, by name."""
        return destinations(self.programs[program])

    def remade(self, since: State) -> set[str]:
        """What was written since another state."""
        return {name for name, when in self.made.items() if since.made.get(name) != when}


class Story(NamedTuple):
    """The states of a tree, and the wall seconds of its first build with a tool and with an idle one."""

    first: State
    again: State
    edited: State
    """After the factor in the source was changed."""
    touched: State
    """After a comment was added to the header."""
    gate: Outcome
    idle_gate: Outcome
    """What the gate says of a tree whose objects nobody annotated."""
    seconds: float
    idle_seconds: float


def tell(system: System, folder: Path) -> Story:
    """Build an example and live through its changes; raises `BuildError` where a build fails."""
    project = _configured(system, folder / "live")
    seconds = project.seconds(*system.build)
    first = _state(system, project, folder / "first")
    gate = project.outcome(*system.gate)
    again = _rebuilt(system, project, folder / "again")
    project.edit(system.source, "3 *", "5 *")
    edited = _rebuilt(system, project, folder / "edited")
    with (project.folder / "hash.h").open("a", encoding="utf-8") as header:
        header.write("/* the end */\n")
    touched = _rebuilt(system, project, folder / "touched")
    idle = _configured(system, folder / "idle")
    idle_seconds = idle.seconds(*system.build, STATICCALL_IDLE="1")
    return Story(first, again, edited, touched, gate, idle.outcome(*system.gate), seconds, idle_seconds)


def _configured(system: System, folder: Path) -> Project:
    project = Project(system.folder, folder)
    if system.configure:
        project.run(*system.configure)
    return project


def _rebuilt(system: System, project: Project, folder: Path) -> State:
    project.run(*system.build)
    return _state(system, project, folder)


def _state(system: System, project: Project, folder: Path) -> State:
    folder.mkdir()
    tree = project.folder / system.tree
    names = ("app", system.bound)
    programs = {name: Path(shutil.copy(tree / name, folder / name)) for name in names}
    prints = {name: project.run(path) for name, path in programs.items()}
    made = {str(path.relative_to(tree)): path.stat().st_mtime_ns for path in (*tree.rglob("*.o"), tree / "app")}
    return State(programs, prints, made)


# ---- oracles ----


def destinations(program: Path) -> list[str]:
    """Where the sites of the table go, in its order, by objdump's names."""
    found = []
    for record in records(program):
        match = re.search(r"<([\w.]+)>$", disassemble(program, record.site))
        assert match is not None, f"{program.name}: no call at {record.site:#x}"
        found.append(match[1])
    return found


def calls_of(program: Path, function: str) -> int:
    """How many calls and jumps to a function a program has, by objdump."""
    command: Sequence[str | Path] = ("objdump", "-dw", program)
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return len(re.findall(rf"\t(?:cs |addr32 )?(?:call|jmp|j[a-z]+) +[0-9a-f]+ <{function}>", listing))


def prints(factor: int) -> str:
    """What the programs print: the text's halves, the first one `factor` times, by both functions."""
    halves = (b"stati", b"c call")
    sums = [sum(half) for half in halves]
    turned = []
    for half in halves:
        value = 0
        for byte in half:
            value = ((value << 5 | value >> 27) & 0xFFFF_FFFF) ^ byte
        turned.append(value)
    at_first, updated = ((factor * first + second) & 0xFFFF_FFFF for first, second in (sums, turned))
    return f"at first {at_first}\nupdated {updated}\n"
