"""read -> locate -> plan -> write -> verify for objects that get their table, one after the other or many at a time."""

import os
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

from staticcall.abi import elf64
from staticcall.abi.static_call import TRAMPOLINE_PREFIX
from staticcall.errors import StaticcallError, UsageError, VerificationError, about, printable
from staticcall.locate.relocated import relocated_sites
from staticcall.model.object import ObjectFile
from staticcall.model.rewrite import Annotation
from staticcall.pipeline import trace
from staticcall.pipeline.parallel import each
from staticcall.plan.annotation import KERNEL_TABLE, plan_annotation
from staticcall.read.object import is_archive, is_object, parse_object
from staticcall.read.source import FileSource
from staticcall.verify.objects.annotation import prove_annotation
from staticcall.write.files import followed, placed, same
from staticcall.write.object import rewrite_object
from staticcall.write.whole import remove_dead, stage_whole

Data = bytes | bytearray
# Small objects take less time than it takes to hand one of them over.
_AT_ONCE = 16


class Order(NamedTuple):
    """How to annotate: the table's section, and whether keys without a symbol are recorded by their trampoline.

    With `verbose` every record is shown.
    """

    section: str = KERNEL_TABLE
    module: bool = False
    verbose: bool = False


class Done(NamedTuple):
    """What became of one file, in a line for a person, or the error that came instead."""

    line: str
    error: str
    exit_code: int


class Annotated(NamedTuple):
    """What became of one file: a line for a person, the number of records made, and whether the file changed."""

    line: str
    records: int
    changed: bool


def order_of(section: str, *, module: bool, verbose: bool) -> Order:
    """What is asked for; raises `UsageError` for a section that nobody could name."""
    if not section or not section.isprintable():  # nor are bytes that are no text
        raise UsageError(f"--section {section!r} is no name of a section")
    return Order(section, module, verbose)


class Pair(NamedTuple):
    """An input and its output; without `follow` a link of the output's name is replaced, not followed."""

    path: str
    target: str
    follow: bool = True


def outputs_of(files: Sequence[str], output: str | None, folder: str | None, *, in_place: bool) -> list[Pair]:
    """Pair every input with its output; raises `UsageError` where that is not said, or said twice."""
    if (output is not None) + (folder is not None) + in_place != 1:
        raise UsageError("give one of -o, --output-dir and --in-place")
    if "" in (output, folder):
        raise UsageError("an output without a name", advice="is a variable of the shell empty?")
    if output is not None:
        if len(files) != 1:
            raise UsageError(f"-o {output} is one file for {len(files)} inputs", advice="use --output-dir")
        pairs = [Pair(files[0], output)]
    elif folder is None:
        pairs = [Pair(path, followed(path)) for path in files]
    else:
        # A link in the folder may lead anywhere; nothing is written outside of it.
        pairs = [Pair(path, _in_folder(folder, path), follow=False) for path in files]
    _refuse_overlaps(pairs, in_place=in_place)
    return pairs


def _refuse_overlaps(pairs: Sequence[Pair], *, in_place: bool) -> None:
    if not in_place:
        for path, target, _ in pairs:
            if same(path, target):
                raise UsageError("is the input as well as the output", path=path, advice="use --in-place")
    targets: dict[str, str] = {}
    for path, target, follow in pairs:
        other = targets.setdefault(followed(target) if follow else placed(target), path)
        if other is not path:
            raise UsageError(f"would be written to {target}, as {other} is", path=path, advice="give each a folder")
    for path, _, _ in pairs:
        if not in_place and (followed(path) in targets or (os.path.islink(path) and placed(path) in targets)):
            raise UsageError("is an input as well as the output of another", path=path)


def _in_folder(folder: str, path: str) -> str:
    return os.path.join(folder, os.path.basename(path))


def annotate_files(pairs: Sequence[Pair], order: Order, *, jobs: int = 1) -> Iterator[Done]:
    """Annotate every input to its output, in order; one that fails does not take the others along."""
    annotate = partial(_annotate_file, order=order)
    return each(annotate, pairs, jobs=jobs, most_at_once=_AT_ONCE)


def _annotate_file(pair: Pair, *, order: Order) -> Done:
    try:
        annotated = annotate_file(pair, order)
    except StaticcallError as error:
        return Done("", str(error), error.exit_code)
    return Done(f"{printable(pair.path)}: {annotated.line}", "", 0)


def annotate_file(pair: Pair, order: Order) -> Annotated:
    """Annotate one input to its output; raises `StaticcallError`, and then nothing was written."""
    path, target, follow = pair
    with about(path), FileSource(path) as source:
        data = source.whole()
        annotate = _annotate_archive if is_archive(data) else _annotate_object
        result, line, records = annotate(path, data, order)
        trace.done(path, "{:,} bytes read, {:,} records made and proved", len(data), records)
        # Whatever is new in the result was proved by another reader.
        if result is None and same(path, target):
            remove_dead(target)  # of a run that was killed, while another one annotated the file
        else:
            new = data if result is None else result
            with stage_whole(path, target, new, lasting=False, follow=follow) as (_, publish):
                source.check_unchanged()
                publish()
            trace.done(path, "published as {}", target)
    return Annotated(line, records, result is not None)


def _annotate_object(_path: str, data: bytes, order: Order) -> tuple[Data | None, str, int]:
    """The annotated object, None where it stays as it is; what there is to say; and the number of records made."""
    file = parse_object(data)
    # Every header and table was checked against the file's size.
    annotation = plan_annotation(file, relocated_sites(file), section=order.section, module=order.module)
    if annotation.rewrite is None:
        return None, _said(annotation, only_lto=_only_lto(file)), 0
    # Every site has one record, and every record a section symbol and a key.
    result = rewrite_object(file, annotation.rewrite)
    prove_annotation(data, result, section=order.section, module=order.module)
    # Another reader found the old object in the new one, and its sites in the table.
    shown = _records(file, annotation) if order.verbose else ""
    return result, _said(annotation, only_lto=False) + shown, len(annotation.records)


def _records(file: ObjectFile, annotation: Annotation) -> str:
    """A line for each record, in their order."""
    names = file.symbols.endings(TRAMPOLINE_PREFIX.encode())
    return "".join(
        f"\n  {printable(file.sections[site.section].name)}+{site.offset:#x} {site.form}"
        f" {printable(names[site.trampoline].decode(errors='backslashreplace'))}"
        for site in annotation.records
    )


def _only_lto(file: ObjectFile) -> bool:
    """Whether the code of an object is still to be made when it is linked."""
    code = any(section.flags & elf64.SHF_EXECINSTR and section.size for section in file.sections)
    return not code and any(section.name.startswith(".gnu.lto_") for section in file.sections)


def _annotate_archive(path: str, data: bytes, order: Order) -> tuple[Data | None, str, int]:
    from staticcall.read.archive import read_members  # noqa: PLC0415 - only for archives
    from staticcall.verify.archive import same_archive  # noqa: PLC0415 - only for archives
    from staticcall.write.archive import rebuild  # noqa: PLC0415 - only for archives

    members = read_members(data)
    replaced: dict[int, bytes] = {}
    lines, made = [], 0
    for number, member in enumerate(members):
        content = data[member.offset : member.offset + member.size]
        if not is_object(content):
            continue  # the index, the names, and what belongs to somebody else
        with about(f"{path}({member.name})"):
            result, line, records = _annotate_object(path, content, order)
        made += records
        lines.append(f"\n  {printable(member.name)}: {line}")
        if result is not None:
            replaced[number] = bytes(result)
    said = f"{len(replaced):,} of {len(lines):,} objects annotated" + "".join(lines)
    if not replaced:
        return None, said, 0
    archive = rebuild(data, members, replaced)
    if {changed.number: changed.after for changed in same_archive(data, archive)} != replaced:
        raise VerificationError("the archive does not hold what its members became", advice="nothing was written")
    # Another reader found the proved members in their places, and all else as it was.
    return archive, said, made


def _said(annotation: Annotation, *, only_lto: bool) -> str:
    if annotation.annotated:
        return "has its table already, left as it is"
    if only_lto:
        return "has no code yet (-flto), left as it is; annotate what it is linked to with -r"
    count = len(annotation.records)
    line = f"{count:,} record{'' if count == 1 else 's'}" if count else "no sites, left as it is"
    if annotation.indirect:
        line += f" ({annotation.indirect:,} through the GOT not recorded, no kernel takes them)"
    return line
