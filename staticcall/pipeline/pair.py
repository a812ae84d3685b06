"""Two files to be compared, as files: what is inside of containers is unpacked to a private folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from staticcall.errors import StaticcallError, UnsupportedError, VerificationError, about
from staticcall.model.container import BzImage, Compressed, Layer
from staticcall.pipeline.wrapped import around_of
from staticcall.read.inputs import open_input
from staticcall.write.private import private_folder, put


class Pair(NamedTuple):
    """Two plain files; `names` are what errors call those that were unpacked, `layers` were around either of them."""

    before: Path
    after: Path
    layers: tuple[Layer, ...]
    remarks: tuple[str, ...]
    names: Mapping[Path, Path]

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Let errors about what was unpacked name the files that the user named."""
        try:
            yield
        except StaticcallError as error:
            if isinstance(error.path, Path):
                error.path = self.names.get(error.path, error.path)
            raise


class _Side(NamedTuple):
    """One of the two: the layers around it without an archive, what it is at each of them, and what is inside.

    Nothing of a plain file is in memory.
    """

    path: Path
    layers: tuple[Layer, ...] = ()
    levels: tuple[bytes, ...] = ()
    inner: bytes | None = None

    @property
    def label(self) -> str:
        return " in ".join(layer.label for layer in reversed(self.layers)) or "plain"


def open_pair(stack: ExitStack, original: Path, patched: Path) -> Pair:
    """Unpack what is packed, by readers of the verifier's own; it is there until the stack is closed.

    Raises `VerificationError` where the two are packed in different ways, or a boot image differs around its payload.
    """
    before, after = _side(original), _side(patched)
    if before.inner is None and after.inner is None:
        return Pair(original, patched, (), (), {})
    remarks: tuple[str, ...] = ()
    if [layer.label for layer in before.layers] == [layer.label for layer in after.layers]:
        contents = _inside(before, after)
        remarks = _packed_alike(before, after)
    elif before.layers and after.layers:
        raise VerificationError(
            f"is packed in another way: {after.label}, and the original {before.label}",
            path=patched,
            advice="unpack one of them",
        )
    else:
        remarks = (f"compared unpacked, since {original} is {before.label} and {patched} {after.label}",)
        contents = _alone(before), _alone(after)
    with about(patched):
        folder = stack.enter_context(private_folder())
    names = {}
    paths = [original, patched]
    for number, (side, content) in enumerate(zip((before, after), contents, strict=True)):
        if content is not None:
            with about(side.path):
                paths[number] = put(folder / ("original", "patched")[number], content)
            names[paths[number]] = side.path
    return Pair(paths[0], paths[1], before.layers or after.layers, remarks, names)


def _side(path: Path) -> _Side:
    with about(path), open_input(path) as (source, layers):
        if not layers:
            return _Side(path)
        around = around_of(path, layers)
        return _Side(path, around.layers, around.levels, source.whole())


def _inside(before: _Side, after: _Side) -> tuple[bytes | None, bytes | None]:
    """What is in two files that are packed alike."""
    if not before.layers or not isinstance(before.layers[-1], BzImage):
        return _alone(before), _alone(after)
    from staticcall.verify.bzimage import prove_envelope  # noqa: PLC0415 - only for boot images

    with about(after.path):
        return prove_envelope(before.levels[-1], after.levels[-1])


def _packed_alike(before: _Side, after: _Side) -> tuple[str, ...]:
    """What to remark on compression that differs; raises `VerificationError` where not every reader takes it."""
    from staticcall.verify.packing import check_packing  # noqa: PLC0415 - only for what is compressed

    remarks: list[str] = []
    levels = (*after.levels, after.inner or b"")
    with about(after.path):
        for layer, old, new, inside in zip(after.layers, before.levels, levels, levels[1:], strict=False):
            # The proof of a boot image is about its payload as well.
            if isinstance(layer, Compressed):
                remarks += check_packing(layer.codec, old, new, len(inside))
    return tuple(remarks)


def _alone(side: _Side) -> bytes | None:
    """What is in one file: of compression by another reader than it was found with."""
    if not side.layers or side.inner is None or isinstance(side.layers[-1], BzImage):
        return side.inner
    from staticcall.verify.unpack import unpack  # noqa: PLC0415 - only for what is compressed

    layer = side.layers[-1]
    if not isinstance(layer, Compressed):
        raise UnsupportedError(f"has nothing inside of its {layer.label}", path=side.path)
    with about(side.path):
        found = unpack(side.levels[-1], layer.codec, len(side.inner))
    if found != side.inner:
        raise VerificationError(f"is unpacked in two ways ({layer.label})", path=side.path)
    return found
