"""staticcall: list, check, rewrite and prove static calls in ELF files.

See `staticcall.api`, which has all that is public here. It is imported when the first of it is asked for: the command
line only wants the version.
"""

# As in `typing`, which takes longer to import than all else here; type checkers know the name.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from staticcall.api import (
        Annotation,
        Change,
        Diff,
        Edit,
        EditKind,
        ExitCode,
        File,
        Finding,
        Form,
        Format,
        InputError,
        Key,
        MalformedError,
        NameSource,
        OutputError,
        Plan,
        Policy,
        PolicyName,
        Proof,
        Report,
        Severity,
        Site,
        Source,
        SourceLine,
        StaticcallError,
        Summary,
        TargetKind,
        Trampoline,
        TrampolineForm,
        UnsafeError,
        UnsupportedError,
        UsageError,
        Verdict,
        VerificationError,
        annotate,
        diff,
        members,
        open,  # noqa: A004 - as in gzip, lzma and tarfile
        revert,
    )

__version__ = "0.1.0"

__all__ = [
    "Annotation",
    "Change",
    "Diff",
    "Edit",
    "EditKind",
    "ExitCode",
    "File",
    "Finding",
    "Form",
    "Format",
    "InputError",
    "Key",
    "MalformedError",
    "NameSource",
    "OutputError",
    "Plan",
    "Policy",
    "PolicyName",
    "Proof",
    "Report",
    "Severity",
    "Site",
    "Source",
    "SourceLine",
    "StaticcallError",
    "Summary",
    "TargetKind",
    "Trampoline",
    "TrampolineForm",
    "UnsafeError",
    "UnsupportedError",
    "UsageError",
    "Verdict",
    "VerificationError",
    "__version__",
    "annotate",
    "diff",
    "members",
    "open",
    "revert",
]


if not TYPE_CHECKING:  # a type checker would take any name for one that there is

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module  # noqa: PLC0415 - as above

        value: object = getattr(import_module("staticcall.api"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__} - {"TYPE_CHECKING"})
