"""What is asked of a damaged file: the commands, with options drawn at random.

case = OPERATIONS["patch"](random, seed, content)
draw(random, stock)                                 any operation of any seed, the damage included
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Final, NamedTuple

from fuzz.mutate import mutated
from fuzz.packing import mended, pack
from fuzz.seed import ORIGINAL, PATCHED, UNDO, Kind, Seed, Stock

BAD = "bad.elf"
OUT, RESULT = "out.elf", "result.json"
FOLDER = "folder"
"""Where there is a link that leads out of it, of the bad file's name."""
TREE = "tree"
"""A folder with the bad file in it, and a sound one."""
FILES: Final = frozenset((BAD, OUT, UNDO, RESULT, FOLDER, TREE, ORIGINAL, PATCHED))
POLICIES = ("lutomirski", "rel32", "block8", "torvalds", "kernel")
_TABLES: Final = (
    *("0:0", "0:8", "8:0", "0xffffffff81000000:0xffffffff81000048", "-8:8", "0:ffffffffffffffff", "ffffffffffffffff:0"),
    *(
        "__start_static_call_sites:__stop_static_call_sites",
        "a:b",
        ":",
        "::",
        "",
        "1",
        "0x:0x",
        "é:\udcff",
        "_start:function",
    ),
    *("1" * 5000 + ":0", "0:10000000000000000", "\n:\n", "filled_call:", "__SCK__filled:__SCK__empty", "0x1000:0x1100"),
)
_STRANGE: Final = ("", "*", "[", "__SCK__one", "a" * 5000, "\n", "é", "\udcff", "RET0", "NULL", "0x1000", "%s", "-1")


class Case(NamedTuple):
    """One run: the files there are, the arguments (files by their names), and what may come of it."""

    operation: str
    files: Mapping[str, bytes]
    arguments: tuple[str, ...]
    codes: frozenset[int]
    outputs: frozenset[str] = frozenset()
    """What may appear when it succeeds."""
    changes: frozenset[str] = frozenset()
    """What may be replaced then."""
    several: bool = False
    """Whether many files are asked about at once: each bad one has its line, and the others are told."""
    inside: int = 0
    """How many bytes more there are where all that is packed is unpacked."""


Operation = Callable[[Random, Seed, bytes], Case]


def draw(random: Random, stock: Stock) -> Case:
    """One case: a seed, damage to it, an operation that it is for."""
    seed = random.choice(stock.seeds)
    content = damaged(random, seed, stock)
    return random.choice(operations_of(seed))(random, seed, content)


def damaged(random: Random, seed: Seed, stock: Stock) -> bytes:
    """A copy that is damaged on the outside, or anywhere inside and packed again."""
    level = random.randrange(len(seed.inner) + 1)
    content = mutated(random, (*seed.inner, seed.sample)[level], stock.samples)
    if level and random.random() < 0.5:
        content = mended(seed.around[level - 1], content)
    for layer in seed.around[level:]:
        content = pack(layer, content)
    return content


def operations_of(seed: Seed) -> Sequence[Operation]:
    """What can be asked about a seed; what is worth more is there more than once."""
    return _BY_KIND[seed.kind]


def _case(
    operation: str, seed: Seed, content: bytes, *arguments: str, codes: Sequence[int], **more: Sequence[str]
) -> Case:
    files = {BAD: content, **{name: seed.beside[name] for name in seed.beside if name in arguments}}
    outputs, changes = (frozenset(more.get(name, ())) for name in ("outputs", "changes"))
    inside = sum(len(sample.content) for sample in seed.inner)
    return Case(operation, files, arguments, frozenset(codes), outputs, changes, inside=inside)


def _some(random: Random, *options: tuple[str, ...], chance: float = 0.3) -> list[str]:
    return [word for option in options if random.random() < chance for word in option]


def _look(random: Random, seed: Seed) -> tuple[list[str], list[int]]:
    """Options of report and patch, and the exit codes that come with strange ones."""
    chosen, codes = ["--policy", random.choice(POLICIES)], []
    chosen += _some(random, ("--line", random.choice(("8", "32", "128", "4096"))), chance=0.2)
    if random.random() < 0.05:
        chosen += [f"--table={random.choice(_TABLES)}"]
        codes = [2, 3]
    if random.random() < 0.05:
        chosen += [f"--key={random.choice((*seed.names.keys, *_STRANGE))}"]
        codes = [2, 3]
    return chosen, codes


def _report(random: Random, seed: Seed, content: bytes) -> Case:
    look, codes = _look(random, seed)
    form = random.choice(("text", "text", "json", "jsonl"))
    more = _some(random, ("-v",), ("--hash",), ("--fail-on", random.choice(("note", "warning", "never"))))
    name = f"report, {form}"
    if random.random() < 0.3:
        more, name = [*more, "--scan"], f"{name}, --scan"
    outputs = ["--output", OUT] if random.random() < 0.1 else []
    arguments = ("report", "--format", form, *more, *look, *outputs, BAD)
    case = _case(name, seed, content, *arguments, codes=(0, 1, 3, *codes), outputs=outputs[1:])
    # What is compressed may be an archive after all.
    return case._replace(several=bool(seed.around))


def _wishes(random: Random, seed: Seed) -> tuple[str, list[str], list[int]]:
    """What to patch: its name, the options, and the exit codes that come with strange ones."""
    keys, targets = seed.names
    kind = random.choice(("--bind", "--bind", "--set", "--set", "RET0", "NULL", "--pin", "strange"))
    key = random.choice(keys)
    if kind == "--bind":
        return kind, [kind], []
    if kind == "--set":
        chosen = [f"--set={one}={random.choice(targets)}" for one in random.sample(keys, random.choice((1, 1, 2)))]
        return kind, [*chosen, *_some(random, ("--bind",), ("--force-type",), chance=0.5)], []
    if kind in ("RET0", "NULL"):
        forced = ("--force", "null-returns-value"), ("--force", "kaslr-slot"), ("--force-type",)
        return kind, [f"--set={key}={kind}", *_some(random, *forced, ("--bind",), chance=0.6)], []
    if kind == "--pin":
        pins = [f"--pin={one}" for one in random.sample(keys, random.choice((1, 1, 2)))]
        return kind, [*pins, *_some(random, ("--bind",), (f"--set={key}={random.choice(targets)}",))], []
    one, other = random.choice((*keys, *_STRANGE)), random.choice((*targets, *_STRANGE))
    return kind, [random.choice((f"--set={one}={other}", f"--set={one}", f"--pin={one}"))], [2]


def _patch(random: Random, seed: Seed, content: bytes) -> Case:
    name, wishes, strange = _wishes(random, seed)
    look, codes = _look(random, seed)
    outputs = [UNDO, RESULT][: random.choice((0, 1, 1, 2))]
    more = [word for option, path in zip(("--edits", "--report"), outputs, strict=False) for word in (option, path)]
    more += _some(random, ("-v",), ("--strip-signature",), chance=0.2)
    place, changes = random.choice((("-o", OUT), ("-o", OUT), ("--in-place",), ("--dry-run",))), []
    if place[0] == "-o":
        outputs.append(OUT)
    elif place[0] == "--in-place":
        changes = [BAD]
    arguments = ("patch", BAD, *place, *wishes, *more, *look)
    return _case(
        f"patch, {name}",
        seed,
        content,
        *arguments,
        codes=(0, 2, 3, 4, 5, *codes, *strange),
        outputs=outputs,
        changes=changes,
    )


def _patch_with(random: Random, seed: Seed, content: bytes) -> Case:
    """A good file with a damaged one beside it: options, relocations, or the kernel of a module."""
    option = {"options": "--config", "relocs": "--relocs"}.get(seed.kind, "--vmlinux")
    wish = (
        [] if seed.kind == "options" else [f"--set={seed.names.keys[0]}={random.choice((*seed.names.targets, 'NULL'))}"]
    )
    place, outputs = random.choice(((("--dry-run",), []), (("-o", OUT), [OUT])))
    beside = ORIGINAL if ORIGINAL in seed.beside else BAD
    arguments = ("patch", beside, option, BAD, *wish, *place)
    return _case(f"patch, {option}", seed, content, *arguments, codes=(0, 2, 3, 4, 5), outputs=outputs)


def _annotate(random: Random, seed: Seed, content: bytes) -> Case:
    more = _some(random, ("--module",), ("--section", "static_call_sites"), ("-v",))
    if random.random() < 0.3:
        place = ("--output-dir", FOLDER)
        return _case("annotate, --output-dir", seed, content, "annotate", *more, BAD, *place, codes=(0, 3, 4, 5))
    if random.random() < 0.5:
        return _case("annotate", seed, content, "annotate", *more, BAD, "-o", OUT, codes=(0, 3, 4, 5), outputs=[OUT])
    return _case("annotate", seed, content, "annotate", *more, "--in-place", BAD, codes=(0, 3, 4, 5), changes=[BAD])


def _verify_itself(random: Random, seed: Seed, content: bytes) -> Case:
    more = _some(random, ("-v",), ("--allow", "kaslr-slot")) + _some(random, ("--deep",), chance=0.1)
    if random.random() < 0.05:
        more += [f"--table={random.choice(_TABLES)}"]
    return _case("verify, with itself", seed, content, "verify", BAD, BAD, *more, codes=(0, 2, 3, 5))


def _verify(random: Random, seed: Seed, content: bytes) -> Case:
    more = _some(random, ("-v",), ("--allow", "kaslr-slot")) + _some(random, ("--deep",), chance=0.1)
    pair = (ORIGINAL, BAD) if random.random() < 0.7 else (BAD, ORIGINAL)
    return _case("verify, with the other", seed, content, "verify", *pair, *more, codes=(0, 3, 5))


def _revert(random: Random, seed: Seed, content: bytes) -> Case:
    patched, undo = (PATCHED, BAD) if seed.kind == "undo" else (BAD, UNDO)
    what = "a damaged undo file" if seed.kind == "undo" else "a damaged image"
    apart = random.random() < 0.7
    place = ("-o", OUT) if apart else ("--in-place",)
    return _case(
        f"revert, {what}",
        seed,
        content,
        *("revert", patched, "--edits", undo, *place),
        codes=(0, 3, 4, 5),
        outputs=[OUT] if apart else [],
        changes=[] if apart else [patched],
    )


def _targets(random: Random, seed: Seed) -> list[str]:
    chosen = [f"--target={random.choice(seed.names.keys)}={random.choice(seed.names.targets)}"]
    return chosen if random.random() < 0.2 else []


def _allow_list(random: Random, seed: Seed, content: bytes) -> Case:
    more = _targets(random, seed)
    if random.random() < 0.05:
        more += [f"--table={random.choice(_TABLES)}"]
    return _case("allow-list", seed, content, "allow-list", *more, BAD, codes=(0, 2, 3, 4))


def _check_memory(random: Random, seed: Seed, content: bytes) -> Case:
    more = _some(random, ("-v",), ("--format", "json"), ("--fail-on", "warning"), chance=0.4) + _targets(random, seed)
    more += _some(
        random, ("--slide", random.choice(("0", "0x1200000", "ffffffffffffffff", "-1", "x", "1" * 99))), chance=0.1
    )
    return _case("check-memory", seed, content, "check-memory", ORIGINAL, "--core", BAD, *more, codes=(0, 1, 2, 3, 4))


def _extract(random: Random, seed: Seed, content: bytes) -> Case:
    member = random.choice(("", seed.member)) if random.random() < 0.9 else random.choice(_MEMBERS)
    if random.random() < 0.4:
        return _case("extract --list", seed, content, "extract", "--list", BAD + member, codes=(0, 2, 3))
    arguments = ("extract", BAD + member, "-o", OUT)
    return _case("extract", seed, content, *arguments, codes=(0, 2, 3, 4), outputs=[OUT])


_MEMBERS: Final = ("(boot/link)", "(boot)", "(boot/other)", "()", "(/)", "(../x)", "(boot/link)(x)", "(TRAILER!!!)")


def _inside(operation: Operation) -> Operation:
    """The same about the member that the seed is made for, which is a file of its own."""

    def asked(random: Random, seed: Seed, content: bytes) -> Case:
        case = operation(random, seed, content)
        arguments = tuple(f"{BAD}{seed.member}" if word == BAD else word for word in case.arguments)
        name = f"{case.operation}, of a member"
        return case._replace(operation=name, arguments=arguments, codes=case.codes | {2, 3}, several=False)

    return asked


def _report_tree(random: Random, seed: Seed, content: bytes) -> Case:
    """All of an archive, or of a folder in which it is."""
    case = _report(random, seed, content)
    if random.random() < 0.5:
        return case._replace(operation=f"{case.operation}, all members")
    # What is named like a module has to be one.
    name = random.choice((BAD, BAD, f"{BAD}.ko.xz"))
    beside = {f"{TREE}/{name}": content, f"{TREE}/good": seed.beside[ORIGINAL]}
    arguments = tuple(TREE if word == BAD else word for word in case.arguments)
    return case._replace(operation=f"{case.operation}, a folder", files=beside, arguments=arguments)


def _diff(random: Random, seed: Seed, content: bytes) -> Case:
    pair = (BAD, ORIGINAL) if random.random() < 0.5 else (ORIGINAL, BAD)
    form = random.choice(("text", "json"))
    more = _some(random, ("-v",), ("--fail-on-change",), ("--scan",))
    case = _case(f"diff, {form}", seed, content, "diff", "--format", form, *more, *pair, codes=(0, 1, 3))
    return case._replace(several=bool(seed.around))


def _explain(random: Random, seed: Seed, content: bytes) -> Case:
    """A key by one of its names, or whatever is at a place: sites lie close in small files."""
    key, target = random.choice(seed.names.keys), random.choice(seed.names.targets)
    place = f"{random.choice(('.text', '.text', 'main', target))}+{random.randrange(0x200):#x}"
    questions = (key, key, f"__SCK__{key}", f"__SCT__{key}", place, place, place, random.choice(_STRANGE))
    look, _ = _look(random, seed)
    more = _some(random, ("-v",), ("--scan",))
    undo = _some(random, ("--edits", UNDO), chance=0.5) if UNDO in seed.beside else []
    form = random.choice(("text", "json"))
    arguments = ("explain", "--format", form, *more, *undo, *look, BAD, "--", random.choice(questions))
    return _case(f"explain, {form}", seed, content, *arguments, codes=(0, 2, 3, 4) if undo else (0, 2, 3))


def _named_by(random: Random, seed: Seed, content: bytes) -> Case:
    """A kernel without names, and a damaged file that has them."""
    option = "--system-map" if seed.kind == "system map" else "--debug-file"
    if random.random() < 0.6:
        return _case(f"report, {option}", seed, content, "report", option, BAD, ORIGINAL, codes=(0, 1, 2, 3))
    wish = (f"--set={seed.names.keys[0]}={random.choice(seed.names.targets)}", "-o", OUT)
    arguments = ("patch", ORIGINAL, option, BAD, *wish)
    return _case(f"patch, {option}", seed, content, *arguments, codes=(0, 2, 3, 4, 5), outputs=[OUT])


_BY_KIND: Final[Mapping[Kind, Sequence[Operation]]] = {
    "image": (_report, _report, _patch, _patch, _patch, _verify_itself, _allow_list, _explain),
    "kernel": (_report, _report, _patch, _patch, _patch, _verify_itself, _allow_list, _explain),
    "object": (_report, _report, _patch, _patch, _patch, _annotate, _verify_itself, _explain),
    "plain": (_annotate, _annotate, _annotate, _report, _patch),
    "archive": (_annotate, _annotate, _report, _patch, _verify_itself),
    "patched": (_verify, _verify, _revert, _explain),
    "undo": (_revert,),
    "options": (_patch_with,),
    "relocs": (_patch_with,),
    "vmlinux": (_patch_with,),
    "core": (_check_memory,),
    "container": (_report, _report, _patch, _patch, _extract, _verify_itself, _verify, _diff, _explain),
    "members": (
        _inside(_report),
        _inside(_patch),
        _inside(_verify_itself),
        _inside(_explain),
        _report_tree,
        _report_tree,
        _extract,
        _diff,
    ),
    "system map": (_named_by,),
    "debug file": (_named_by,),
    "told": (_diff,),
}
