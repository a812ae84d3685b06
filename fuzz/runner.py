"""Structure-aware fuzzing in several processes: every input is its seed and its number, and can be made again.

A process that dies or hangs is a finding as well; another goes on behind the input that did it.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import queue
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkProcess
from multiprocessing.queues import Queue
from pathlib import Path
from random import Random
from typing import NamedTuple

from fuzz.cases import Case, draw, operations_of
from fuzz.findings import Findings
from fuzz.judge import Judge
from fuzz.seed import Stock
from fuzz.tally import Tally

_BATCH = 200
_SAID_EVERY = 10.0  # seconds
SILENCE = 120.0  # seconds without an input done, of which none may take more than a few
_WARM = 3
_THOROUGH = 4  # of so many inputs that succeed, one is looked at by other commands


class Task(NamedTuple):
    """What is to be done: the inputs from `first` to below `stop`, in so many processes."""

    stock: Stock
    seed: int
    first: int
    stop: int
    jobs: int
    home: Path
    findings: Path


class _Report(NamedTuple):
    """What a process says from time to time; `next` is the first input that is not counted yet."""

    worker: int
    next: int
    tally: Tally
    findings: dict[str, int]


def case_of(stock: Stock, seed: int, number: int) -> Case:
    """The input of a number."""
    return draw(Random(seed << 40 | number), stock)


def run(task: Task, say: Callable[[str], None]) -> tuple[Tally, Findings]:
    """Do it all; `say` gets a line about the progress now and then."""
    context = multiprocessing.get_context("fork")
    reports: Queue[_Report] = context.Queue()
    current = context.RawArray("q", [task.first - 1] * task.jobs)  # what each process is working on
    tally, findings, skipped = Tally(), Findings(task.findings), set[int]()
    workers = [_Worker(number, task.first + number) for number in range(task.jobs)]
    start = said = time.monotonic()
    while any(worker.next < task.stop for worker in workers):
        for worker in workers:
            if worker.process is None and worker.next < task.stop:
                current[worker.number] = task.first - 1
                arguments = (task, worker.number, worker.next, skipped, current, reports)
                worker.start(context.Process(target=_work, args=arguments, daemon=True))
            if what := worker.lost(current[worker.number]):
                number = current[worker.number]
                if number < task.first:
                    raise RuntimeError(f"process {worker.number} died before its first input: {what}")
                findings.add(case_of(task.stock, task.seed, number), f"{task.seed}:{number}", (what,), None, None)
                tally.add("(process lost)", -1, 0.0, 0)
                skipped.add(number)
        for report in _received(reports):
            workers[report.worker].next = report.next
            tally.update(report.tally)
            findings.counts.update(report.findings)
        if time.monotonic() - said > _SAID_EVERY:
            said = time.monotonic()
            rate = tally.inputs / (said - start)
            say(f"{tally.inputs:,} of {task.stop - task.first:,} inputs, {rate:.0f}/s, {len(findings.counts)} findings")
    for worker in workers:
        if worker.process is not None:
            worker.process.join()
    return tally, findings


class _Worker:
    """One process after the other for the same inputs; `next` is the first input that is not counted yet."""

    def __init__(self, number: int, first: int) -> None:
        self.number = number
        self.next = first
        self.process: ForkProcess | None = None
        self._seen = (first, 0.0)

    def start(self, process: ForkProcess) -> None:
        """Go on with another process."""
        process.start()
        self.process, self._seen = process, (-1, time.monotonic())

    def lost(self, current: int) -> str:
        """What became of the process where it died, or has been at the same input for too long; it is ended then."""
        if self.process is None:
            return ""
        if current != self._seen[0]:
            self._seen = current, time.monotonic()
        what = ""
        if self.process.exitcode not in (None, 0):
            what = f"crash: exit code {self.process.exitcode}"
        elif self.process.exitcode is None and time.monotonic() - self._seen[1] > SILENCE:
            what = "hang"
            self.process.kill()
        if what:
            self.process.join()
            self.process = None
        return what


def _received(reports: Queue[_Report]) -> Iterator[_Report]:
    try:
        yield reports.get(timeout=0.5)
        while True:
            yield reports.get_nowait()
    except queue.Empty:
        return


def _work(
    task: Task,
    worker: int,
    first: int,
    skipped: set[int],
    current: list[int],
    reports: Queue[_Report],
) -> None:
    """One process: every input whose number is its own, from `first` on."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    home = task.home / f"worker-{worker}-{os.getpid()}"
    home.mkdir(parents=True)
    os.chdir(home)
    judge, findings, tally = Judge(home), Findings(task.findings), Tally()
    warm_up(judge, task.stock)
    gc.freeze()  # what is there now stays, and need not be looked through again and again
    before: dict[str, int] = {}
    for count, number in enumerate(range(first, task.stop, task.jobs), 1):
        current[worker] = number
        if number not in skipped:
            _one(task, number, judge, findings, tally)
        if count % _BATCH == 0 or number + task.jobs >= task.stop:
            new = {kind: total - before.get(kind, 0) for kind, total in findings.counts.items()}
            reports.put(_Report(worker, number + task.jobs, tally, new))
            before, tally = dict(findings.counts), Tally()


def _one(task: Task, number: int, judge: Judge, findings: Findings, tally: Tally) -> None:
    random = Random(task.seed << 40 | number)
    seed = random.choice(task.stock.seeds)
    case = case_of(task.stock, task.seed, number)
    outcome = judge.run(case, thorough=number % _THOROUGH == 0)
    tally.add(case.operation, outcome.code, outcome.seconds, outcome.growth)
    if outcome.problems:
        findings.add(case, f"{task.seed}:{number}", outcome.problems, judge, seed.content)


def warm_up(judge: Judge, stock: Stock) -> None:
    """Run every operation a few times on sound files: what is imported late takes time and memory of its own."""
    first = {(seed.kind, operation): seed for seed in reversed(stock.seeds) for operation in operations_of(seed)}
    for (_, operation), seed in first.items():
        for number in range(_WARM):
            judge.run(operation(Random(number), seed, seed.content))
