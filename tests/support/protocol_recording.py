"""What the runtime did to the sites of `fixtures/protocols`, step by step, as the program itself recorded it.

    recording = record(build_recorder(tmp_path), "emulate")
    for site in recording.sites: ...

All addresses are those of the running program, which is linked to a fixed one.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Literal, NamedTuple

import capstone

import staticcall
from tests.support.tool import succeed
from tests.support.toolchain import run
from tests.support.user_objects import run_tool

Action = Literal["begin", "ask", "done", "func", "write", "store", "sync", "trap"]

PROTOCOLS: Final = ("emulate", "torvalds", "lutomirski", "rel32", "block8", "out-of-line")
STACK_POINTER: Final = 16  # where in a `Landing.stack` the stack pointer was
BLANK_STACK: Final = b"\x5a" * 32

_SOURCES = Path(__file__).parents[2] / "fixtures" / "protocols"
_RUNTIME = Path(staticcall.__file__).parent / "runtime"


class Landing(NamedTuple):
    """Where a thread is after one instruction: address, what was added to rsp, the 32 bytes around where rsp was."""

    address: int
    moved: int = 0
    stack: bytes = BLANK_STACK


class Handled(NamedTuple):
    """What the trap handler made of an int3 at a site."""

    site: int
    flags: int
    landing: Landing | None
    """None: it left the trap to others, or changed what it must not."""


class Step(NamedTuple):
    """A line of the recording. `address` and `data` are of bytes written; `key` and `function` of keys."""

    action: Action
    address: int = 0
    data: bytes = b""
    key: int = 0
    function: int = 0
    trap: Handled | None = None


class Site(NamedTuple):
    """A record's instruction. `kind` is its mnemonic, with its prefix in front if it has one: `cs call`."""

    address: int
    kind: str
    key: int
    tail: bool
    code: bytes

    @property
    def end(self) -> int:
        """The address behind it."""
        return self.address + len(self.code)

    def crosses(self, unit: int, start: int = 0) -> bool:
        """Whether its bytes from `start` on lie in more than one aligned block of `unit` bytes."""
        return (self.address + start) // unit != (self.end - 1) // unit

    @property
    def displacement(self) -> int:
        """Where in the instruction rel32 is."""
        return len(self.code) - 4


class Recording(NamedTuple):
    """One run under one protocol. `now` are the bytes of each site after each update, read from memory."""

    protocol: str
    text: int
    sites: tuple[Site, ...]
    trampolines: Mapping[int, int]
    steps: tuple[Step, ...]
    now: tuple[Mapping[int, bytes], ...]
    conditions: tuple[Handled, ...]
    strangers: int


def build_recorder(folder: Path, *options: str) -> Path:
    """The program: the sites annotated by the tool, the runtime with an observer, compiled in."""
    sites = folder / "sites.o"
    run_tool("gcc", "-c", _SOURCES / "sites.S", "-o", sites)
    succeed("annotate", "--in-place", "--section", "static_call_sites", sites)
    program = folder / "recorder"
    flags = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-fno-pie", "-no-pie", "-pthread", *options)
    observer = ("-DSTATIC_CALL_OBSERVER=observe", f"-I{_RUNTIME / 'include'}")
    run_tool("gcc", *flags, *observer, _SOURCES / "recorder.c", sites, _RUNTIME / "staticcall.c", "-o", program)
    return program


def record(program: Path, protocol: str) -> Recording:
    """Run it; raises `RunError` where it ends otherwise than with exit code 0."""
    return _Reader(protocol, run(program, protocol)).recording()


class _Reader:
    """Reads the program's lines: see the head of recorder.c."""

    def __init__(self, protocol: str, text: str) -> None:
        self._protocol = protocol
        self._lines = [line.split() for line in text.splitlines()]
        self._decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)

    def recording(self) -> Recording:
        return Recording(
            self._protocol,
            int(next(self._all("text"))[0], 16),
            tuple(self._site(*words) for words in self._all("site")),
            {int(address, 16): int(trampoline, 16) for address, trampoline in self._all("key")},
            tuple(self._steps()),
            tuple(self._now()),
            tuple(_handled(*words) for words in self._all("condition")),
            int(next(self._all("strangers"))[0], 16),
        )

    def _all(self, word: str) -> Iterator[list[str]]:
        return (rest for first, *rest in self._lines if first == word)

    def _site(self, address: str, key: str, tail: str, code: str) -> Site:
        instruction = next(self._decoder.disasm(bytes.fromhex(code), int(address, 16), 1))
        prefix = {0x2E: "cs ", 0x67: "addr32 "}.get(instruction.bytes[0], "")
        kind = prefix + instruction.mnemonic
        return Site(instruction.address, kind, int(key, 16), tail == "1", bytes(instruction.bytes))

    def _steps(self) -> Iterator[Step]:
        for action, *words in self._lines:
            match action:
                case "begin" | "sync":
                    yield Step(action)
                case "done":
                    if words != ["0"]:
                        raise ValueError(f"an update failed: {words}")
                    yield Step(action)
                case "ask" | "func":
                    key, function = words
                    yield Step(action, key=int(key, 16), function=int(function, 16))
                case "write" | "store":
                    address, data = words
                    yield Step(action, address=int(address, 16), data=bytes.fromhex(data))
                case "trap":
                    trap = _handled(*words)
                    yield Step(action, address=trap.site, trap=trap)
                case _:
                    pass

    def _now(self) -> Iterator[Mapping[int, bytes]]:
        after: dict[int, bytes] = {}
        for action, *words in self._lines:
            if action == "now":
                after[int(words[0], 16)] = bytes.fromhex(words[1])
            elif after:
                yield after
                after = {}


def _handled(*words: str) -> Handled:
    site, flags, handled, rip, moved, stack, spoiled = words
    add = int(moved, 16)
    landing = Landing(int(rip, 16), add - (add >> 63 << 64), bytes.fromhex(stack))
    return Handled(int(site, 16), int(flags, 16), landing if (handled, spoiled) == ("1", "0") else None)
