"""What is done to files as a whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from staticcall.api.requests import optional_path, path_of
from staticcall.errors import StrPath, UsageError


class Annotation(NamedTuple):
    """What became of an object or archive that was to get its table of sites.

    Attributes:
        records: How many records were made.
        changed: Whether the output differs from the input; False where there are no sites, or was a table.
        message: The same in words, as `staticcall annotate` says it.
    """

    records: int
    changed: bool
    message: str


def annotate(
    path: StrPath,
    output: StrPath | None = None,
    *,
    in_place: bool = False,
    section: str = ".static_call_sites",
    module: bool = False,
) -> Annotation:
    """Give an object, or all of an archive, its table of static-call sites, as `objtool --static-call` does.

    What is written is proved by another reader before it appears, by one rename.

    Args:
        path: The object or archive.
        output: Where the annotated one goes.
        in_place: Replace the input, atomically, instead.
        section: The table's section. User programs take `static_call_sites`: linkers mark the ends of a section only
            where its name is a C identifier.
        module: Record keys that have no symbol by their trampoline, as modules do that only have this exported.

    Returns:
        How many records were made, and whether anything changed.

    Raises:
        UsageError: Not exactly one of `output` and `in_place` is given, or the output is the input.
        InputError: It cannot be read, or is malformed.
        OutputError: The output cannot be written.
        VerificationError: The proof failed; nothing was written.

    Examples:
        >>> staticcall.annotate("app.o", "app.annotated.o", section="static_call_sites").changed
        True
        >>> staticcall.annotate("app.annotated.o", in_place=True, section="static_call_sites").message
        'has its table already, left as it is'
    """
    from staticcall.pipeline.annotate import annotate_file, order_of, outputs_of  # noqa: PLC0415 - for who annotates

    if (output is None) != in_place:
        raise UsageError("give one of output and in_place", path=path)
    name = os.fspath(path_of(path))
    target = None if output is None else os.fspath(path_of(output))
    (pair,) = outputs_of([name], target, None, in_place=in_place)
    line, records, changed = annotate_file(pair, order_of(section, module=module, verbose=False))
    return Annotation(records, changed, line)


def revert(patched: StrPath, edits_file: StrPath, output: StrPath) -> int:
    """Take back what `Plan.apply` did: the original again, bit for bit.

    Args:
        patched: The rewritten file.
        edits_file: The undo file that was written along with it.
        output: Where the original goes. It has the original's SHA-256, or is not written.

    Returns:
        How many edits were taken back.

    Raises:
        UsageError: The output is one of the inputs.
        UnsafeError: The edits are those of another file.
        InputError: A file cannot be read.
        VerificationError: The result would not be the original.

    Examples:
        >>> with staticcall.open("demo") as file:
        ...     _ = file.plan({"checksum": "checksum_fast"}).apply("demo.fast", edits_file="undo.json")
        >>> staticcall.revert("demo.fast", "undo.json", "demo.again")
        3
        >>> from pathlib import Path
        >>> Path("demo.again").read_bytes() == Path("demo").read_bytes()
        True
    """
    from staticcall.pipeline.patch import output_of  # noqa: PLC0415 - 70 ms, for who writes
    from staticcall.pipeline.undo import revert_image  # noqa: PLC0415 - as above

    path, edits = path_of(patched), path_of(edits_file)
    target = output_of(path, optional_path(output), in_place=False, others=(edits,))
    return revert_image(path, edits, target)


def members(path: StrPath) -> Iterator[str]:
    """The members of an archive that may hold static calls, by their content.

    Args:
        path: A static library (`.a`), a Debian package, or a cpio archive such as an initramfs.

    Returns:
        Their names, one by one, in the archive's order; `open` takes them.

    Raises:
        InputError: It cannot be read, or is no archive; of a damaged one, after the members before the damage.

    Examples:
        >>> for name in staticcall.members("libapp.a"):
        ...     with staticcall.open("libapp.a", name) as file:
        ...         print(file.path, file.report().elf_type)
        libapp.a(app.o) REL
    """
    from staticcall.pipeline.opened import members_in  # noqa: PLC0415 - for who asks

    return members_in(path_of(path))
