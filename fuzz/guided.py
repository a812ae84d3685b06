"""Fuzzing by coverage: atheris (libFuzzer for Python) keeps what reaches new code, and the mutations are those of here.

An input is four bytes, which choose the seed, the operation and its options, and then the damaged file. Each runs in
processes of its own, since the tool's code has to be instrumented when it is imported.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import pkgutil
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from fuzz.tally import Tally

if TYPE_CHECKING:
    from fuzz.cases import Case
    from fuzz.runner import Task
    from fuzz.seed import Seed, Stock

_HEAD = 4
_STOCK, _TALLY, _KINDS, _LOG = "stock", "tally", "kinds", "log"
_SAVED_EVERY = 200
_MOST_DEATHS = 10
_SLOWER = 5.0  # instrumented code takes so many times as long
_OWN_MUTATIONS = 0.9


class _Started(NamedTuple):
    """A process, what it is to do, and how many died at the same inputs before it."""

    home: Path
    process: subprocess.Popen[bytes]
    inputs: int
    deaths: int


def run(stock: Stock, inputs: int, task: Task, say: Callable[[str], None]) -> tuple[Tally, Counter[str]]:
    """Run so many inputs in processes of their own; gives what came of them.

    A process that dies is a finding; what libFuzzer said and the input are kept, and another goes on.
    """
    (task.home / _STOCK).write_bytes(pickle.dumps(stock))
    tally, kinds = Tally(), Counter[str]()
    shares = [inputs // task.jobs + (worker < inputs % task.jobs) for worker in range(task.jobs)]
    started = [_start(stock, task, f"guided-{worker}", share, 0) for worker, share in enumerate(shares) if share]
    say(f"by coverage: {inputs:,} inputs in {len(started)} processes")
    try:
        while started:
            home, process, wanted, deaths = started[0]
            process.wait()
            del started[0]
            done = Tally.load(home / _TALLY) if (home / _TALLY).exists() else Tally()
            tally.update(done)
            if (home / _KINDS).exists():
                kinds.update(json.loads((home / _KINDS).read_text(encoding="ascii")))
            say(f"by coverage: {tally.inputs:,} of {inputs:,} inputs, {len(kinds)} findings")
            if process.returncode:
                kinds[f"by coverage: exit code {process.returncode}"] += 1
                kept = task.findings / f"{home.name} of seed {task.seed}"
                kept.mkdir(parents=True, exist_ok=True)
                for path in (home / _LOG, *home.glob("crash-*")):
                    shutil.copy(path, kept)
                if wanted > done.inputs and deaths < _MOST_DEATHS:
                    started.append(_start(stock, task, f"{home.name}-again", wanted - done.inputs, deaths + 1))
    finally:
        for one in started:
            one.process.kill()
    return tally, kinds


def _start(stock: Stock, task: Task, name: str, inputs: int, deaths: int) -> _Started:
    """Start a process with all seeds as its corpus."""
    home = task.home / name
    corpus = home / "corpus"
    corpus.mkdir(parents=True)
    for number, seed in enumerate(stock.seeds):
        (corpus / f"{number:03}").write_bytes(bytes([number, 0, 0, 0]) + seed.content)
    chosen = int.from_bytes(sha256(f"{task.seed} {name}".encode()).digest()[:3], "little")
    command = [sys.executable, "-m", "fuzz.guided", "--inputs", str(inputs), "--seed", str(chosen)]
    command += ["--home", str(home), "--findings", str(task.findings)]
    # The order of sets decides which code is reached first.
    environment = {**os.environ, "PYTHONHASHSEED": str(chosen)}
    with (home / _LOG).open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)  # noqa: S603 - its own command
    return _Started(home, process, inputs, deaths)


def case_of(stock: Stock, data: bytes) -> Case:
    """What an input of libFuzzer's is."""
    from fuzz.cases import operations_of  # noqa: PLC0415 - it imports the tool, which may have to be instrumented first

    head = data[:_HEAD].ljust(_HEAD, b"\0")
    seed = stock.seeds[head[0] % len(stock.seeds)]
    operations = operations_of(seed)
    return operations[head[1] % len(operations)](Random(head[2] | head[3] << 8), seed, data[_HEAD:])


def main() -> None:
    """One process: instrument, and let libFuzzer choose."""
    parser = argparse.ArgumentParser(prog="python -m fuzz.guided")
    parser.add_argument("--inputs", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--findings", type=Path, required=True)
    options = parser.parse_args()
    import atheris  # noqa: PLC0415 - only this process needs it

    with atheris.instrument_imports(include=["staticcall"]):
        import staticcall  # noqa: PLC0415 - instrumented

        for module in pkgutil.walk_packages(staticcall.__path__, "staticcall."):
            if not module.name.endswith("__main__"):
                import_module(module.name)
    target = _Target(options)
    # The judge has limits of its own. atheris takes a limit of 0 seconds for one, and rings after a second.
    arguments = [sys.argv[0], str(options.home / "corpus"), f"-seed={options.seed}", "-timeout=3600"]
    arguments += ["-rss_limit_mb=0", "-len_control=0", "-verbosity=0", f"-artifact_prefix={options.home}/"]
    atheris.Setup(arguments, target, custom_mutator=target.mutate)
    atheris.Fuzz()


class _Target:
    """What libFuzzer calls: with an input to run, or with one to mutate."""

    def __init__(self, options: argparse.Namespace) -> None:
        from fuzz.findings import Findings  # noqa: PLC0415 - these import the tool, instrumented by now
        from fuzz.judge import SECONDS, Judge  # noqa: PLC0415 - the same
        from fuzz.runner import warm_up  # noqa: PLC0415 - the same

        self._home: Path = options.home
        self._inputs: int = options.inputs
        self._findings = Findings(options.findings)
        self._tally = Tally()
        self._stock: Stock = pickle.loads((self._home.parent / _STOCK).read_bytes())  # noqa: S301 - of our own process
        self._judge = Judge(self._home, seconds=_SLOWER * SECONDS)
        os.chdir(self._home)
        warm_up(self._judge, self._stock)

    def __call__(self, data: bytes) -> None:
        """Run one input."""
        seed, case = self._seed(data.ljust(_HEAD, b"\0")), case_of(self._stock, data)
        outcome = self._judge.run(case, thorough=self._tally.inputs % 4 == 0)
        self._tally.add(case.operation, outcome.code, outcome.seconds, outcome.growth)
        if outcome.problems:
            self._findings.add(case, f"by coverage, {data[:_HEAD].hex()}", outcome.problems, self._judge, seed.content)
        last = self._tally.inputs >= self._inputs
        if last or self._tally.inputs % _SAVED_EVERY == 0:
            self._tally.save(self._home / _TALLY)
            (self._home / _KINDS).write_text(json.dumps(self._findings.counts), encoding="ascii")
        if last:
            os._exit(0)

    def mutate(self, data: bytes, most: int, number: int) -> bytes:
        """Another input of one: mostly by a mutation that knows the file, now and then as libFuzzer would."""
        import atheris  # noqa: PLC0415 - only this process needs it

        from fuzz.mutate import mutate  # noqa: PLC0415 - it imports the tool's test support, instrumented by now

        random = Random(number)
        head, content = bytearray(data[:_HEAD].ljust(_HEAD, b"\0")), bytearray(data[_HEAD:])
        if random.random() < 0.3:
            head[1:] = random.randbytes(3)
        if random.random() < _OWN_MUTATIONS:
            mutate(random, content, self._seed(head).sample.map, self._stock.samples, big=False)
        else:
            content = bytearray(atheris.Mutate(bytes(content), max(1, most - _HEAD)))
        return bytes(head + content)[:most]

    def _seed(self, data: bytes | bytearray) -> Seed:
        return self._stock.seeds[data[0] % len(self._stock.seeds)]


if __name__ == "__main__":
    main()
