"""Give the program very many bad files, and print what came of them; exit with 1 where something went wrong.

python -m fuzz                                     a million inputs, most of the time structure-aware
python -m fuzz --inputs 5000 --guided 500 --jobs 1
python -m fuzz --replay build/fuzz/findings/1a2b3c4d5e6f
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from fuzz import guided, runner
from fuzz.findings import load
from fuzz.judge import Judge
from fuzz.seeds import build
from fuzz.tally import Tally

_SHARE = 5  # of so many inputs, one is by coverage
_MEMORY_DISK = Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it


def main() -> None:
    """Run, and print."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1_000_000, help="of both kinds together")
    parser.add_argument(
        "--guided", type=int, help="how many of them are guided by coverage; one in five unless told so"
    )
    parser.add_argument("--first", type=int, default=0, help="the number of the first input")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--findings", type=Path, default=Path("build/fuzz/findings"))
    parser.add_argument(
        "--replay", type=Path, help="run one finding again: its folder, or an input that libFuzzer kept"
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing is left behind
    home = Path(tempfile.mkdtemp(prefix="staticcall-fuzz-", dir=_MEMORY_DISK if _MEMORY_DISK.is_dir() else None))
    try:
        sys.exit(_replay(options.replay, home) if options.replay else _fuzz(options, home))
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _fuzz(options: argparse.Namespace, home: Path) -> int:
    by_coverage = options.inputs // _SHARE if options.guided is None else options.guided
    findings: Path = options.findings.resolve()
    seeds = home / "seeds"
    seeds.mkdir()
    stock = build(seeds)
    stop = options.first + options.inputs - by_coverage
    _say(f"seed {options.seed}, inputs {options.first} to {stop - 1}, then {by_coverage} by coverage")
    task = runner.Task(stock, options.seed, options.first, stop, options.jobs, home, findings)
    tally, found = runner.run(task, _say)
    _print("Structure-aware", tally)
    kinds = dict(found.counts)
    if by_coverage:
        tally, more = guided.run(stock, by_coverage, task, _say)
        _print("By coverage", tally)
        for kind, count in more.items():
            kinds[kind] = kinds.get(kind, 0) + count
    for kind, count in sorted(kinds.items()):
        _print_line(f"FINDING, {count} times: {kind!r}")
    _print_line(f"\n{len(kinds)} findings" + (f", in {findings}" if kinds else ""))
    return bool(kinds)


def _replay(path: Path, home: Path) -> int:
    if path.is_dir():
        case = load(path)
    else:
        (home / "seeds").mkdir()
        case = guided.case_of(build(home / "seeds"), path.read_bytes())
    outcome = Judge(home).run(case)
    _print_line(f"{case.operation}: {' '.join(case.arguments)!r}\nexit code {outcome.code}, {outcome.seconds:.2f} s")
    _print_line(f"{outcome.out[-2000:]!r}\n{outcome.err[-2000:]!r}")
    for problem in outcome.problems:
        _print_line(f"FINDING: {problem}")
    return bool(outcome.problems)


def _print(what: str, tally: Tally) -> None:
    _print_line(f"\n{what}, {tally.inputs:,} inputs:\n")
    for line in tally.table():
        _print_line(line)


def _print_line(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _say(text: str) -> None:
    sys.stderr.write(f"fuzz: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
