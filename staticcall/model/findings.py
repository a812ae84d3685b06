"""The findings that there can be, by their codes, which are public: what each means, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from staticcall.model.sites import Severity

_ERROR, _WARNING, _NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE


class FindingKind(NamedTuple):
    """One kind of finding: the severities that it is raised with, worst first; a sentence; and what to do about it."""

    severities: tuple[Severity, ...]
    meaning: str
    advice: str


# Those that `report` makes.
FINDINGS: Final[Mapping[str, FindingKind]] = {
    "ambiguous-table": FindingKind(
        (_WARNING,),
        "Nothing names the table of sites, and what looks like it is not certain.",
        "Say where the table is with --table START:STOP, or give the file's names with --system-map or --debug-file.",
    ),
    "duplicate-record": FindingKind(
        (_ERROR, _NOTE),
        "Several records list the same site: for different keys an error, for one key what --pin makes.",
        "For different keys rebuild the file, since its table is damaged; for the same key there is nothing to do.",
    ),
    "in-kprobe-blacklist": FindingKind(
        (_NOTE,),
        "The site lies in a function that kprobes leave alone.",
        "Nothing: static calls are patched there as elsewhere.",
    ),
    "incoherent-key": FindingKind(
        (_WARNING,),
        "A key's pointer leads to one function and its trampoline to another.",
        "Lead the key again with patch --set KEY=TARGET, which changes both, or rebuild the file.",
    ),
    "no-static-calls": FindingKind(
        (_NOTE,),
        "The image has no static calls.",
        "Check that this is the right file, and that it was built with static calls.",
    ),
    "no-table": FindingKind(
        (_WARNING, _NOTE),
        "There are trampolines or calls to them, and no table that lists the sites.",
        "Run annotate on the objects before they are linked, or say where the table is with --table START:STOP.",
    ),
    "not-live": FindingKind(
        (_NOTE,),
        "A record points to an instruction that no update at run time reaches.",
        "Call through static_call() alone, and annotate the object again.",
    ),
    "other-kernel": FindingKind(
        (_ERROR,),
        "The module was built for another kernel than the one given with --vmlinux.",
        "Give the kernel that the module was built for.",
    ),
    "overlapping-records": FindingKind(
        (_ERROR,),
        "The instructions of two records overlap.",
        "Rebuild the file: its table of sites is damaged.",
    ),
    "overlaps-alternative": FindingKind(
        (_WARNING,),
        "The kernel may replace the code at a static call by what suits the processor.",
        "Leave the site alone: patch refuses to edit it.",
    ),
    "overlaps-call-thunk": FindingKind(
        (_WARNING,),
        "The kernel may lead the call at a static call to the accounting of its target.",
        "Check the object files with objtool: a static call should not be in .call_sites.",
    ),
    "overlaps-exception": FindingKind(
        (_NOTE,),
        "The exception table names the code of a static call: the kernel survives a fault there.",
        "Nothing: the table writes no code.",
    ),
    "overlaps-jump-label": FindingKind(
        (_WARNING,),
        "A jump label lies on a static call, and the kernel stops where it finds no jump or nop of its own.",
        "Leave the site alone: patch refuses to edit it. Rebuild the file, since one of two tables is wrong.",
    ),
    "overlaps-lock-prefix": FindingKind(
        (_WARNING,),
        "The kernel takes a byte of a static call for a lock prefix, and rewrites it if it looks like one.",
        "Rebuild the file, since one of two tables is wrong; patch refuses an edit that makes the byte look like one.",
    ),
    "overlaps-paravirt": FindingKind(
        (_WARNING,),
        "The kernel replaces the code at a static call by what suits the hypervisor.",
        "Leave the site alone: patch refuses to edit it.",
    ),
    "overlaps-retpoline": FindingKind(
        (_WARNING,),
        "The list of retpolines names a static call, and the kernel warns where it finds no branch to one.",
        "Check the object files with objtool: a static call should not be in .retpoline_sites.",
    ),
    "overlaps-return": FindingKind(
        (_WARNING,),
        "The list of returns names a static call, and the kernel warns where it finds no jump to its return thunk.",
        "Check the object files with objtool: a static call should not be in .return_sites.",
    ),
    "site-not-executable": FindingKind(
        (_ERROR,),
        "A record points into a section that holds no code.",
        "Rebuild the file: its table of sites is damaged. If you gave --table, check its ends.",
    ),
    "stale-site": FindingKind(
        (_WARNING,),
        "A site that was patched leads elsewhere than its key.",
        "Lead the key again with patch --set KEY=TARGET, or revert the file with its undo file.",
    ),
    "unaccepted-bytes": FindingKind(
        (_ERROR, _NOTE),
        "A record points to bytes that the kernel concerned does not accept: it stops or warns when it finds them.",
        "Do not boot or load the file; rebuild it, or revert it with its undo file.",
    ),
    "unaccepted-trampoline": FindingKind(
        (_ERROR,),
        "A trampoline has bytes that this kernel does not accept: it stops or warns when the static call is updated.",
        "Do not boot or load the file; build it with the headers of the kernel that it is for.",
    ),
    "unknown-trampoline": FindingKind(
        (_ERROR, _WARNING),
        "A trampoline has bytes of no known generation.",
        "Check what rewrote the file; patch refuses to lead its key elsewhere.",
    ),
    "unreadable-table": FindingKind(
        (_WARNING,),
        "A table of the kernel that may name the same code cannot be read.",
        "Rebuild the file. If you know that the table names no static call, patch takes --force unreadable-table.",
    ),
    "unrecorded-site": FindingKind(
        (_WARNING,),
        "An instruction leads to a trampoline, and the table does not list it, so nothing patches it.",
        "Run annotate, or objtool --static-call, on every object before the file is linked.",
    ),
    "unresolved-key": FindingKind(
        (_ERROR, _NOTE),
        "A module needs a key or a trampoline that no file given defines and exports.",
        "Give the kernel and the modules that it belongs to with --vmlinux and --modules; if they have no such key, "
        "export it with EXPORT_STATIC_CALL.",
    ),
    "wrong-trampoline": FindingKind(
        (_ERROR,),
        "A record belongs to one key, and its instruction leads to the trampoline of another.",
        "Rebuild the file: its table of sites is damaged.",
    ),
}

# Those that `check-memory` makes.
IN_MEMORY: Final[Mapping[str, FindingKind]] = {
    "corrupt": FindingKind(
        (_ERROR,),
        "The code in memory is nothing that static calls ever write there.",
        "Compare the memory image with the file that runs, and look for whoever else writes code.",
    ),
    "not-as-key": FindingKind(
        (_WARNING,),
        "A site or a trampoline leads to a target that its key may have, and its key leads elsewhere.",
        "Take the memory image again where the machine was running: it may have been in the middle of an update.",
    ),
    "unknown-target": FindingKind(
        (_WARNING,),
        "A site or a trampoline leads to a function that the allow-list does not have for its key.",
        "If a module leads it there, make the allow-list with that module; else find out who does.",
    ),
}
