"""`staticcall annotate`: objects get their table of static-call sites."""

from __future__ import annotations

from typing import Any

from staticcall.cli.outcome import complain, counted, say, watched
from staticcall.cli.quick import JOBS, QUIET, VERBOSE, Option
from staticcall.pipeline.annotate import Order, annotate_files, order_of, outputs_of

NAME = "annotate"

OPTIONS = (
    Option(("-o", "--output"), "output", "path", "Where the annotated object goes, for one FILE."),
    Option(("--output-dir",), "folder", "path", "Where the annotated objects go, under their own names."),
    Option(("--in-place",), "in_place", "flag", "Replace the inputs, each atomically.", default=False),
    Option(
        ("--section",),
        "section",
        "text",
        "The table's section; static_call_sites for user programs, whose linker then finds its ends.",
        default=Order().section,
        metavar="NAME",
    ),
    Option(("--module",), "module", "flag", "Record a key without a symbol by its trampoline.", default=False),
    JOBS,
    VERBOSE._replace(help="Show every record, and log what is done."),
    QUIET,
)

HELP = """Give objects (.o, .a) their .static_call_sites.

Each is a relocatable object or an archive of them. Every call and jump to a trampoline gets the record and the
relocations that the kernel's own build tool, objtool, makes; no kernel tree and no compiler plugin is needed. An
object that has its table already, or has no sites, is left as it is.

\b
Examples:
  staticcall annotate --in-place kernel/sched/core.o
  staticcall annotate --module driver.o -o driver.annotated.o
  staticcall annotate --section static_call_sites -j 4 --output-dir build/ *.o
"""


def run(files: tuple[str, ...], values: dict[str, Any]) -> int:
    """Annotate; returns the worst exit code of all files."""
    pairs = outputs_of(files, values["output"], values["folder"], in_place=values["in_place"])
    order = order_of(values["section"], module=values["module"], verbose=values["verbose"])
    code = 0
    with watched(None, verbose=values["verbose"], quiet=values["quiet"]):
        for done in counted(annotate_files(pairs, order, jobs=values["jobs"]), pairs, values):
            if done.error:
                complain(done.error)
                code = max(code, done.exit_code)
            elif not values["quiet"]:
                say(done.line + "\n")
    return code
