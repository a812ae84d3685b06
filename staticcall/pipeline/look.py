"""read -> locate -> classify -> report."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from staticcall.classify.ladders import classify
from staticcall.errors import about
from staticcall.locate.linked import locate
from staticcall.locate.pinned import pinned_sites, without_repeats
from staticcall.model.change import Edit
from staticcall.model.image import Image
from staticcall.model.report import ImageReport
from staticcall.model.select import select_keys
from staticcall.model.sites import Answer, Judge, Located, Policy, Site, Source, TargetKind, Verdict
from staticcall.read.image import open_image
from staticcall.read.object import is_archive, is_object, parse_object
from staticcall.read.source import FileSource, read_whole, sha256_of, sha256_of_bytes
from staticcall.report.build import build_report

# The verdict on sites that no table lists any more, and that go straight to their targets for ever.
_PINNED = Verdict(Answer.DIRECT, "pinned")
# Enough to see whether it is an archive.
_HEAD = 8


class Look(NamedTuple):
    """How to look at an image; `keys` is a glob, `table` START:STOP, `hashed` asks for the file's SHA-256.

    `edits` is the undo file of the patch that made the image, which knows the sites that are pinned.
    """

    policy: Policy = Policy()
    keys: str | None = None
    table: str | None = None
    scan: bool = False
    hashed: bool = False
    edits: Path | None = None


@contextmanager
def report_image(
    path: Path, look: Look, name: Path | None = None, edits: Sequence[Edit] | None = None
) -> Iterator[ImageReport]:
    """Report on one file; renderers may still read from it, so the report is good inside the `with` block.

    `name` is what the report calls the file instead of its path, `edits` are those that made it, where they are known.
    Raises `UnsafeError` where the undo file is another file's.
    """
    with open_image(path, name) as image:
        sha256 = sha256_of(path) if look.hashed or look.edits else None
        if look.edits is not None:
            edits = _edits_of(path, look.edits, sha256)
        yield _report(image, look, sha256 if look.hashed else None, edits)


def _edits_of(path: Path, edits_file: Path, sha256: str | None) -> tuple[Edit, ...]:
    from staticcall.pipeline.edits import other_file, read_edits  # noqa: PLC0415 - only for --edits

    _, patched, edits = read_edits(edits_file)
    if patched != sha256:
        raise other_file(path, edits_file)
    return edits


def _report(image: Image, look: Look, sha256: str | None, edits: Sequence[Edit] | None = None) -> ImageReport:
    # Every header and table was checked against the file's size; contents are still in the file.
    located = locate(image, table=look.table, scan=look.scan)
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
        verdicts = [_PINNED if Source.EDITS in site.sources else verdict for site, verdict in pairs]
    # Every selected site has exactly one verdict.
    return build_report(image, located, look.policy, sites, verdicts, keys, sha256=sha256, knows_pins=edits is not None)


def _by_address(site: Site) -> int:
    return site.address


def archive_at(path: Path) -> bool:
    """Whether the file begins as an archive of objects does."""
    with about(path), FileSource(path) as source:
        return is_archive(source.read(0, min(source.size, _HEAD)))


def report_members(path: Path, look: Look) -> Iterator[ImageReport]:
    """Report on every object in an archive, one after the other, each named as `archive(member)`."""
    from staticcall.read.archive import read_members  # noqa: PLC0415 - only for archives
    from staticcall.read.placed import place_object  # noqa: PLC0415 - only for archives

    with about(path):
        data = read_whole(path)
        for member in read_members(data):
            content = data[member.offset : member.offset + member.size]
            if is_object(content):
                name = Path(f"{path}({member.name})")
                with about(name):
                    image = place_object(name, parse_object(content))
                    digest = sha256_of_bytes(content) if look.hashed else None
                    yield _report(image, look, digest)


def judge_for(located: Located, policy: Policy) -> Judge:
    """The classifier for one image and policy."""
    kinds = {address: located.kind_of(key) for address, key in located.keys.items()}

    def judge(sites: Iterable[Site], target: TargetKind | None = None) -> list[Verdict]:
        def target_of(key: int | None) -> TargetKind:
            return target or kinds.get(key or 0, TargetKind.FUNCTION)

        return classify(
            sites, policy=policy, dialect=located.dialect, trampolines=located.trampolines, target_of=target_of
        )

    return judge
