"""read -> locate -> classify -> report."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from staticcall.classify.ladders import classify
from staticcall.errors import about
from staticcall.locate.linked import locate
from staticcall.locate.pinned import pinned_sites, without_repeats
from staticcall.model.aids import NO_AIDS, Aids
from staticcall.model.change import Edit
from staticcall.model.container import Layer
from staticcall.model.image import ByteSource, Image
from staticcall.model.report import ImageReport
from staticcall.model.select import select_keys
from staticcall.model.sites import Answer, Judge, Located, Policy, Site, Source, TargetKind, Verdict
from staticcall.read.image import open_image, read_image
from staticcall.read.inputs import container_at, sha256_of_input
from staticcall.read.object import is_object, parse_object
from staticcall.read.source import read_whole, sha256_of_bytes
from staticcall.report.build import build_report

# The verdict on sites that no table lists any more, and that go straight to their targets for ever.
_PINNED = Verdict(Answer.DIRECT, "pinned")


class Look(NamedTuple):
    """How to look at an image; `keys` is a glob, `table` START:STOP, `hashed` asks for the file's SHA-256.

    `edits` is the undo file of the patch that made the image, which knows the sites that are pinned; `aids` are other
    files that help to read this one.
    """

    policy: Policy = Policy()
    keys: str | None = None
    table: str | None = None
    scan: bool = False
    hashed: bool = False
    edits: Path | None = None
    aids: Aids = NO_AIDS


@contextmanager
def report_image(
    path: Path, look: Look, name: Path | None = None, edits: Sequence[Edit] | None = None
) -> Iterator[ImageReport]:
    """Report on one file; renderers may still read from it, so the report is good inside the `with` block.

    `name` is what the report calls the file instead of its path, `edits` are those that made it, where they are known.
    Raises `UnsafeError` where the undo file is another file's.
    """
    with open_image(path, name, look.aids.names) as image:
        sha256 = sha256_of_input(path) if look.hashed or look.edits else None
        if look.edits is not None:
            edits = _edits_of(path, look.edits, sha256)
        yield _report(image, look, sha256 if look.hashed else None, edits)


def report_source(
    name: Path, source: ByteSource, layers: tuple[Layer, ...], look: Look, sha256: str | None = None
) -> ImageReport:
    """Report on one file that somebody else has opened, and unpacked where it was in `layers`."""
    with about(name):
        return _report(read_image(name, source, layers, look.aids.names), look, sha256)


def _edits_of(path: Path, edits_file: Path, sha256: str | None) -> tuple[Edit, ...]:
    from staticcall.pipeline.edits import other_file, read_edits  # noqa: PLC0415 - only for --edits

    _, patched, edits = read_edits(edits_file)
    if patched != sha256:
        raise other_file(path, edits_file)
    return edits


def _report(image: Image, look: Look, sha256: str | None, edits: Sequence[Edit] | None = None) -> ImageReport:
    # Every header and table was checked against the file's size; contents are still in the file.
    located = locate(image, table=look.table, scan=look.scan)
    if look.aids.vmlinux is not None or look.aids.modules is not None:
        located = _resolved(image, located, look.aids)
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
                    yield _report(image, look, digest)


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
