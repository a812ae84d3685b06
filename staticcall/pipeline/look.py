"""read -> locate -> classify -> report."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from staticcall.classify.ladders import classify
from staticcall.errors import UnsupportedError, about
from staticcall.locate.linked import locate
from staticcall.locate.pinned import pinned_sites, without_repeats
from staticcall.model.aids import NO_AIDS, Aids
from staticcall.model.change import Edit
from staticcall.model.container import Layer
from staticcall.model.image import ByteSource, Image
from staticcall.model.lines import NO_LINES, SourceLine
from staticcall.model.report import ImageReport
from staticcall.model.select import select_keys
from staticcall.model.sites import Answer, Judge, Located, Policy, Site, Source, TargetKind, Verdict
from staticcall.pipeline import trace
from staticcall.read.image import open_image, read_image
from staticcall.read.inputs import container_at, sha256_of_input
from staticcall.read.object import is_object, parse_object
from staticcall.read.source import read_whole, sha256_of_bytes
from staticcall.report.build import build_report

# The verdict on sites that no table lists any more, and that go straight to their targets for ever.
PINNED = Verdict(Answer.DIRECT, "pinned")


SMALLEST_LINE, LARGEST_LINE = 8, 4096
NO_LINE = f"no power of two from {SMALLEST_LINE} to {LARGEST_LINE}"


def is_line(value: int) -> bool:
    """Whether a cache line can have so many bytes."""
    return not value & (value - 1) and SMALLEST_LINE <= value <= LARGEST_LINE


# Line programs of so many bytes are read in a quarter of a second; a kernel's have 20 MB and take a whole one.
_QUICK_SIZE = 4 << 20


class Look(NamedTuple):
    """How to look at an image; `keys` is a glob, `table` START:STOP, `hashed` asks for the file's SHA-256.

    `edits` is the undo file of the patch that made the image, which knows the sites that are pinned; `aids` are other
    files that help to read this one. `lines` asks for the source lines of sites, `quick_lines` for those that are
    told quickly, which those of a whole kernel are not.
    """

    policy: Policy = Policy()
    keys: str | None = None
    table: str | None = None
    scan: bool = False
    hashed: bool = False
    edits: Path | None = None
    aids: Aids = NO_AIDS
    lines: bool = False
    quick_lines: bool = False


@contextmanager
def report_image(
    path: Path, look: Look, name: Path | None = None, edits: Sequence[Edit] | None = None
) -> Iterator[ImageReport]:
    """Report on one file; renderers may still read from it, so the report is good inside the `with` block.

    `name` is what the report calls the file instead of its path, `edits` are those that made it, where they are known.
    Raises `UnsafeError` where the undo file is another file's.
    """
    with open_image(path, name, look.aids.names) as image:
        trace.opened(image)
        yield report_opened(path, image, look, locate_for(image, look), edits)


def report_opened(
    path: Path, image: Image, look: Look, located: Located, edits: Sequence[Edit] | None = None
) -> ImageReport:
    """Report on a file that is open already; `located` is what `locate_for` gives for it, and can serve many reports.

    Raises as `report_image` does.
    """
    sha256 = sha256_of_input(path) if look.hashed or look.edits else None
    if look.edits is not None:
        edits = _edits_of(path, look.edits, sha256)
    return _report(image, look, located, sha256 if look.hashed else None, edits)


def report_source(
    name: Path, source: ByteSource, layers: tuple[Layer, ...], look: Look, sha256: str | None = None
) -> ImageReport:
    """Report on one file that somebody else has opened, and unpacked where it was in `layers`."""
    with about(name):
        image = read_image(name, source, layers, look.aids.names)
        return _report(image, look, locate_for(image, look), sha256)


def _edits_of(path: Path, edits_file: Path, sha256: str | None) -> tuple[Edit, ...]:
    from staticcall.pipeline.edits import other_file, read_edits  # noqa: PLC0415 - only for --edits

    _, patched, edits = read_edits(edits_file)
    if patched != sha256:
        raise other_file(path, edits_file)
    return edits


def locate_for(image: Image, look: Look) -> Located:
    """All that is known of an image's static calls before any judgement; of `look` the table, scan and aids count."""
    # Every header and table was checked against the file's size; contents are still in the file.
    trace.doing("searching the code" if look.scan else "locating sites")
    located = locate(image, table=look.table, scan=look.scan)
    if look.aids.vmlinux is not None or look.aids.modules is not None:
        located = _resolved(image, located, look.aids)
    trace.located(image, located)
    return located


def _report(
    image: Image, look: Look, located: Located, sha256: str | None, edits: Sequence[Edit] | None = None
) -> ImageReport:
    # Every site lies in the file, and every record has exactly one site.
    everything: Iterable[Site] = without_repeats(located)
    if edits is not None:
        with about(look.edits or image.path):
            # Pinned sites have no record, but lie in the file as well.
            everything = sorted((*everything, *pinned_sites(image, located, edits)), key=_by_address)
    keys = select_keys(located.keys.values(), look.keys)
    selected = {key.address for key in keys}
    sites = tuple(site for site in everything if look.keys is None or site.key in selected)
    verdicts = judge_for(located, look.policy)(sites)
    if edits is not None:
        pairs = zip(sites, verdicts, strict=True)
        verdicts = [PINNED if Source.EDITS in site.sources else verdict for site, verdict in pairs]
    # Every selected site has exactly one verdict.
    report = build_report(image, located, look.policy, sites, verdicts, keys, edits=edits)
    trace.judged(report)
    lines = _lines_of(image, sites, quick=look.quick_lines) if look.lines else NO_LINES
    trace.doing("writing the report")
    return report._replace(sha256=sha256, lines=lines)


def _lines_of(image: Image, sites: Sequence[Site], *, quick: bool) -> Mapping[int, SourceLine]:
    from staticcall.read.lines import line_programs_size, source_lines  # noqa: PLC0415 - only for the forms that tell them

    if quick and line_programs_size(image) > _QUICK_SIZE:
        trace.done(image.path, "source lines left out: their programs are long")
        return NO_LINES
    trace.doing("reading the source lines")
    lines = source_lines(image, {site.address for site in sites})
    trace.done(image.path, "source lines of {:,} addresses", len(lines))
    return lines


def _resolved(image: Image, located: Located, aids: Aids) -> Located:
    from staticcall.locate.foreign import with_surroundings  # noqa: PLC0415 - only for --vmlinux and --modules
    from staticcall.pipeline.foreign import surroundings_of  # noqa: PLC0415 - only for --vmlinux and --modules

    return with_surroundings(image, located, surroundings_of(aids))


def _by_address(site: Site) -> int:
    return site.address


def archive_at(path: Path) -> bool:
    """Whether the file is an archive, of which no member is named."""
    with about(path):
        return container_at(path) is not None


def refuse_archive(path: Path) -> None:
    """Raise `UnsupportedError` for an archive of which no member is named, where one file is asked for."""
    if archive_at(path):
        raise UnsupportedError("is an archive", path=path, advice="name one of its members, as FILE(MEMBER)")


def report_members(path: Path, look: Look, name: Path | None = None) -> Iterator[ImageReport]:
    """Report on every object in an archive, one after the other, each named as `archive(member)`.

    `name` is what the archive is called instead of its path.
    """
    from staticcall.read.archive import read_members  # noqa: PLC0415 - only for archives
    from staticcall.read.placed import place_object  # noqa: PLC0415 - only for archives

    with about(name or path):
        data = read_whole(path)
        for member in read_members(data):
            content = data[member.offset : member.offset + member.size]
            if is_object(content):
                own = Path(f"{name or path}({member.name})")
                with about(own):
                    image = place_object(own, parse_object(content))
                    digest = sha256_of_bytes(content) if look.hashed else None
                    yield _report(image, look, locate_for(image, look), digest)


def judge_for(located: Located, policy: Policy) -> Judge:
    """The classifier for one image and policy."""
    # Where another file says what a key leads to, that is what the kernel finds when it loads the module.
    kinds = {
        address: key.slot.definition.kind if key.slot.definition else located.kind_of(key)
        for address, key in located.keys.items()
    }

    def judge(sites: Iterable[Site], target: TargetKind | None = None) -> list[Verdict]:
        def target_of(key: int | None) -> TargetKind:
            return target or kinds.get(key or 0, TargetKind.FUNCTION)

        return classify(
            sites, policy=policy, dialect=located.dialect, trampolines=located.trampolines, target_of=target_of
        )

    return judge
