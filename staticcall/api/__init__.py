"""The Python API: what `import staticcall` gives.

`open` gives a `File`. Its `report` says what is there, its `plan` what a rewrite would change, `Plan.apply` writes that
and gives the proof, and `File.verify` proves what somebody else has written. `revert` takes a rewrite back, `annotate`
gives objects their table, `diff` compares builds, and `members` lists what is in an archive.

Examples:
    >>> import staticcall
    >>> with staticcall.open("vmlinux") as file:
    ...     report = file.report()
    ...     plan = file.plan(bind=True)
    >>> report
    <Report on vmlinux: sites ... (... direct), keys ..., policy lutomirski, cache line of 64 bytes>
    >>> [site for site in report.sites if site.reason == "crosses-line"][0]
    <Site 0xffffffff8... in ...+0x...: call of ..., trampoline (crosses-line)>
    >>> plan  # nothing is written so far: that does plan.apply("vmlinux.bound", edits_file="undo.json")
    <Plan for vmlinux: keys ..., edits ... (site ...)>

What is public: the names in `__all__`, here and in `staticcall`, the parameters of these functions, and the fields of
these classes by their names. New versions may add parameters, and fields behind those that there are. All else, the
modules behind this one included, may change with any version.

Results are values: they never change, can be compared and pickled, and stay good when the file is closed. Addresses
are integers, those that the file was linked for; in a relocatable object they are None. Offsets and sizes are in bytes.
Words like `direct` or `lutomirski` are members of enumerations, and equal to the plain text.

Errors are exceptions, all of them a `StaticcallError`, with `what` is wrong, the `path`, the `offset` in the file where
there is one, `advice`, and the `exit_code` by which the command line ends for it. Advice speaks of the command line's
options; parameters have their names. `TypeError` and `ValueError` are mistakes of the caller.

Nothing is printed. Any thread may call anything. In the main thread, what writes a file removes its temporary file
where SIGINT, SIGTERM or SIGHUP ends the process, unless the program handles these itself. Of archives the member that
was unpacked last is kept in memory, to be found again.
"""

from __future__ import annotations

from staticcall.api.comparison import Diff, diff
from staticcall.api.file import File, open  # noqa: A004 - as in gzip, lzma and tarfile
from staticcall.api.files import Annotation, annotate, members, revert
from staticcall.api.plan import Change, Plan
from staticcall.api.report import Report
from staticcall.errors import (
    ExitCode,
    InputError,
    MalformedError,
    OutputError,
    StaticcallError,
    UnsafeError,
    UnsupportedError,
    UsageError,
    VerificationError,
)
from staticcall.model.change import Edit, EditKind, Proof
from staticcall.model.form import Form
from staticcall.model.image import NameSource
from staticcall.model.lines import SourceLine
from staticcall.model.sites import Finding, Policy, PolicyName, Severity, Source, TargetKind, TrampolineForm
from staticcall.model.values import Key, Site, Summary, Trampoline, Verdict
from staticcall.pipeline.forms import Format

__all__ = [  # noqa: RUF022 - in the order in which one reads about them
    "open",
    "members",
    "annotate",
    "revert",
    "diff",
    "File",
    "Report",
    "Site",
    "Key",
    "Trampoline",
    "Summary",
    "Finding",
    "SourceLine",
    "Plan",
    "Change",
    "Edit",
    "Proof",
    "Annotation",
    "Diff",
    "Policy",
    "NameSource",
    "Verdict",
    "PolicyName",
    "Format",
    "Form",
    "Source",
    "TargetKind",
    "TrampolineForm",
    "EditKind",
    "Severity",
    "StaticcallError",
    "UsageError",
    "InputError",
    "MalformedError",
    "UnsupportedError",
    "OutputError",
    "UnsafeError",
    "VerificationError",
    "ExitCode",
]
