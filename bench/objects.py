"""The figures of relocatable objects: annotating, beside the kernel's own build tool on the same objects."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path
from statistics import median

from bench.measure import Figure, Runs, in_turn, on_one_core, say, shell, tool
from tests.support import kbuild
from tests.support.modules import development

MEGABYTE = 1 << 20
MANY = 1_000
GROWTH = (10_000, 100_000, 1_000_000)
# A kernel of 862 objects, linked with `ld -r`, has 780,000 relocations in 52 MB, and 7,610 sites.
RELOCATIONS_OF_A_KERNEL = 780_000
SITES_OF_A_KERNEL = 7_610
# 16,808 sites in the 862 objects before they are linked.
SITES_OF_AN_OBJECT = 19.5
_RELA_SIZE = 24


def object_figures(folder: Path, rounds: int) -> list[Figure]:
    """Measure and print; gives the figures."""
    kernel = development()
    objtool = kernel.objtool.with_name("objtool.real-x86")
    corpus = sorted(path for path in kbuild.objects(kernel).rglob("*.o") if path.stat().st_size)
    figures = _many(folder, corpus, objtool, rounds)
    figures += _one_small(folder, corpus, rounds)
    figures += _one_large(folder, corpus, objtool, rounds)
    return figures + _growth(folder, rounds)


def _show(name: str, runs: Runs) -> None:
    say(f"{name:<18} {runs}  peak {runs.peak / MEGABYTE:5.0f} MiB")


def _fresh(folder: Path, files: Sequence[tuple[Path, str]] = ()) -> Callable[[], None]:
    """What makes a folder anew, with these files under these names."""

    def prepare() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for path, name in files:
            shutil.copyfile(path, folder / name)

    return prepare


def _many(folder: Path, corpus: Sequence[Path], objtool: Path, rounds: int) -> list[Figure]:
    """A thousand objects: one run of the tool, and a process of objtool for each."""
    parts = _as_in_a_kernel(corpus)
    files = [(path, f"{number}.o") for number, path in enumerate(islice(cycle(parts), MANY))]
    inputs, outputs, copies = folder / "inputs", folder / "outputs", folder / "copies"
    _fresh(inputs, files)()
    size = sum(path.stat().st_size for path in inputs.iterdir())
    say(f"{MANY:,} objects of {size / MANY / 1024:.0f} KiB each, made of {len(parts)} of the kernel's")
    annotate = tool("annotate", "--quiet", "--module", "--output-dir", outputs, *sorted(inputs.iterdir()))
    # It annotates in place, so it gets copies.
    loop = f"for o in {shlex.quote(str(copies))}/*.o; do {shlex.quote(str(objtool))} --static-call --module $o; done"
    runs = in_turn(
        {"annotate": on_one_core(annotate), "objtool": on_one_core(shell(f"exec 2>&1; {loop}; true"))},
        rounds,
        {"annotate": _fresh(outputs), "objtool": _fresh(copies, files)},
    )
    for name, measured in runs.items():
        _show(f"{name}, {MANY:,}", measured)
    ratio = runs["annotate"].median / runs["objtool"].median
    return [Figure(f"annotate {MANY:,} objects / {MANY:,} processes of objtool", ratio, 0.35)]


def _as_in_a_kernel(corpus: Sequence[Path]) -> list[Path]:
    """Those of the corpus with the fewest sites, until they have as many each as the objects of a whole kernel.

    The corpus was chosen for its static calls, and has four times as many.
    """
    ordered = sorted((_trampoline_relocations(path), path) for path in corpus)
    chosen: list[Path] = []
    total = 0
    for sites, path in ordered:
        if chosen and total + sites > SITES_OF_AN_OBJECT * (len(chosen) + 1):
            break
        chosen.append(path)
        total += sites
    return chosen


def _one_small(folder: Path, corpus: Sequence[Path], rounds: int) -> list[Figure]:
    """A small object in a process of its own, as a build step has it."""
    small = min((path for path in corpus if b"__SCT__" in path.read_bytes()), key=lambda path: path.stat().st_size)
    say(f"{small.name}, {small.stat().st_size / 1024:.0f} KiB")
    annotate = tool("annotate", "--quiet", "--module", small, "-o", folder / "small.o")
    runs = in_turn({"python -c pass": [sys.executable, "-c", "pass"], "annotate one": annotate}, 3 * rounds)
    for name, measured in runs.items():
        _show(name, measured)
    ratio = runs["annotate one"].median / runs["python -c pass"].median
    return [Figure("annotate one small object / python -c pass", ratio, 4)]


def _one_large(folder: Path, corpus: Sequence[Path], objtool: Path, rounds: int) -> list[Figure]:
    """An object of the size of a whole kernel."""
    large, copies = folder / "large.o", folder / "copies"
    _link(corpus, large)
    annotate = tool("annotate", "--quiet", "--module", large, "-o", folder / "large.annotated.o")
    command = [str(objtool), "--static-call", "--module", str(copies / "large.o")]
    runs = in_turn(
        {"annotate large": annotate, "objtool large": shell(f"{shlex.join(command)} 2>&1")},
        rounds,
        {"objtool large": _fresh(copies, [(large, "large.o")])},
    )
    for name, measured in runs.items():
        _show(name, measured)
    ours, theirs = runs["annotate large"], runs["objtool large"]
    return [
        Figure("annotate a kernel's worth in one object / objtool: time", ours.median / theirs.median, 1 / 3),
        Figure("annotate a kernel's worth in one object / objtool: memory", ours.peak / theirs.peak, 1 / 3),
    ]


def _link(corpus: Sequence[Path], large: Path) -> None:
    """Link some of the corpus as often as it takes; of what is defined again, the first definition counts.

    The corpus was chosen for its static calls; of its objects come those with the fewest, until there are as many for
    each relocation as in a whole kernel.
    """
    sizes = {path: (_trampoline_relocations(path), _relocations(path)) for path in corpus if "gcc" in path.parts}
    parts: list[Path] = []
    sites = relocations = 0
    for path, (own_sites, own_relocations) in sorted(sizes.items(), key=_density):
        if sites + own_sites > SITES_OF_A_KERNEL / RELOCATIONS_OF_A_KERNEL * (relocations + own_relocations):
            break
        parts.append(path)
        sites, relocations = sites + own_sites, relocations + own_relocations
    times = -(-RELOCATIONS_OF_A_KERNEL // relocations)
    command = ["ld", "-r", "-z", "muldefs", "-o", str(large), *map(str, parts * times)]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    size, count = large.stat().st_size / 1e6, _relocations(large)
    say(f"linked from {len(parts) * times} objects: {size:.0f} MB, {count:,} relocations")


def _density(item: tuple[Path, tuple[int, int]]) -> float:
    _, (sites, relocations) = item
    return sites / max(relocations, 1)


def _trampoline_relocations(path: Path) -> int:
    """How many relocations of calls and jumps name a trampoline, by readelf."""
    command = ["readelf", "-rW", str(path)]
    listing = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
    return sum("R_X86_64_PLT32" in line and " __SCT__" in line for line in listing.stdout.splitlines())


def _relocations(path: Path) -> int:
    """How many relocations an object has, by readelf."""
    command = ["readelf", "-SW", str(path)]
    listing = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
    rows = (line.partition("]")[2].split() for line in listing.stdout.splitlines())
    return sum(int(row[4], 16) // _RELA_SIZE for row in rows if len(row) > 4 and row[1] == "RELA")


def _growth(folder: Path, rounds: int) -> list[Figure]:
    """Time per site beyond start-up must not grow with the number of sites in one object."""
    counts = (1, *GROWTH)
    commands = {}
    for sites in counts:
        path = folder / f"{sites}-sites.o"
        # In a process of its own: what this one once held would count as memory of all that it starts.
        code = "import sys; from pathlib import Path; from bench.synthetic import write_object;"
        code += "write_object(Path(sys.argv[1]), int(sys.argv[2]))"
        subprocess.run([sys.executable, "-c", code, str(path), str(sites)], check=True)
        commands[str(sites)] = tool("annotate", "--quiet", path, "-o", folder / "grown.o")
    runs = in_turn(commands, min(rounds, 3))
    for sites in counts:
        _show(f"{sites:,} sites", runs[str(sites)])
    # Processor time: the largest one writes for so long that the next in turn waits for the disk.
    spent = {sites: median(runs[str(sites)].processor) for sites in counts}
    each = {sites: (spent[sites] - spent[1]) / sites for sites in GROWTH}
    say(", ".join(f"{1e6 * each[sites]:.1f} us a site of {sites:,}" for sites in GROWTH))
    small, large = GROWTH[0], GROWTH[-1]
    # Linear is 1; the rest is for caches, which the small one fits in, and for the noise of the machine.
    return [Figure(f"annotate: time per site, {large:,} / {small:,} in one object", each[large] / each[small], 1.25)]
