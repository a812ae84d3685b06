"""A patched file goes back into what was around it: sign, compress, and read back, from the inside to the outside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from staticcall.errors import UnsupportedError, UsageError, VerificationError, about
from staticcall.model.change import Edit, OuterChange, Undo
from staticcall.model.container import BzImage, Compressed, Layer
from staticcall.pipeline.seal import Seal, sign_image
from staticcall.pipeline.trace import doing
from staticcall.read.source import sha256_of_bytes
from staticcall.write.files import followed

_NOTHING = "nothing was published"


class Around(NamedTuple):
    """What is around a file that is patched: the layers that its output has as well, the outermost first.

    A member of an archive becomes a file of its own, so the archive is none of them. `levels` are the original's
    bytes at each of the layers, beginning with the file or member itself. `file` is what the file system calls the
    file, `named` tells whether it is an archive, of which a member was named.
    """

    layers: tuple[Layer, ...]
    levels: tuple[bytes, ...]
    file: Path
    named: bool


def around_of(path: Path, layers: Sequence[Layer]) -> Around:
    """What is around an open file that is in these layers; raises `InputError` where it cannot be read again."""
    if not layers:
        return Around((), (), path, named=False)
    from staticcall.read.inputs import open_outer, split_member  # noqa: PLC0415 - not for plain files

    file, member = split_member(path)
    with about(path), open_outer(path) as (source, archives):
        kept = tuple(layers[len(archives) :])
        levels = [source.whole()] if kept else []
        for layer in kept[:-1]:
            # Only compression is around anything else.
            levels.append(unpacked_layer(levels[-1], layer))
    return Around(kept, tuple(levels), file, member is not None)


def unpacked_layer(data: bytes, layer: Layer) -> bytes:
    """What is inside of a layer that is not the innermost; raises `InputError`."""
    from staticcall.read.containers.codecs import limit_for, unpack  # noqa: PLC0415 - not for plain files

    if not isinstance(layer, Compressed):
        raise UnsupportedError(f"has something else inside of its {layer.label}", advice="unpack it")
    return unpack(data, layer.codec, limit_for(len(data)))[0]


def refuse_archive_as_output(around: Around, path: Path, outputs: Sequence[Path | None]) -> None:
    """Raise `UsageError` where anything would be written over the archive that the file is a member of."""
    if not around.named:
        return
    kept = (followed(around.file), followed(path))
    if any(output is not None and followed(output) in kept for output in outputs):
        raise UsageError(
            "is a member of an archive, which is left as it is",
            path=path,
            advice="give -o with the name of a file of its own",
        )


def refuse_signed_image(around: Around, seal: Seal) -> None:
    """Raise `UnsafeError` for a signed boot image whose signature nobody gave up, before any work is done on it."""
    for layer, original in zip(around.layers, around.levels, strict=True):
        if isinstance(layer, BzImage):
            from staticcall.write.bzimage import refuse_signed  # noqa: PLC0415 - only for boot images

            refuse_signed(original, strip_signature=seal.drops_signature)


def wrap(inner: bytes, around: Around, seal: Seal) -> list[bytes]:
    """The patched file with its layers around it again: the outermost file first, and what is inside of it behind.

    Raises `UnsafeError` where a layer has no room for it, `OutputError` where it cannot be signed.
    """
    made = [inner]
    for layer, original in zip(reversed(around.layers), reversed(around.levels), strict=True):
        from staticcall.write.compress import compress  # noqa: PLC0415 - not for plain files

        doing("compressing")
        if isinstance(layer, BzImage):
            made.append(_rebuilt(made[-1], layer, original, seal))
        elif isinstance(layer, Compressed):
            made.append(compress(made[-1], layer))
    return made[::-1]


def _rebuilt(inner: bytes, layer: BzImage, original: bytes, seal: Seal) -> bytes:
    from staticcall.write.bzimage import rebuild  # noqa: PLC0415 - only for boot images
    from staticcall.write.compress import compress  # noqa: PLC0415 - not for plain files

    stream = compress(inner, layer.payload)
    if len(stream) > layer.stream_size:
        stream = compress(inner, layer.payload, limit=layer.stream_size)
    rebuilt = rebuild(original, layer, stream, len(inner), strip_signature=seal.drops_signature)
    return sign_image(rebuilt, seal)


def prove_wrapped(made: Sequence[bytes], around: Around) -> None:
    """See that what is about to be written holds the file that was proved, by readers that the writer does not use.

    Raises `VerificationError`.
    """
    from staticcall.verify.bzimage import prove_envelope  # noqa: PLC0415 - only for what is written
    from staticcall.verify.packing import check_packing  # noqa: PLC0415 - only for what is written
    from staticcall.verify.unpack import unpack  # noqa: PLC0415 - only for what is written

    for layer, original, outside, inside in zip(around.layers, around.levels, made, made[1:], strict=False):
        if isinstance(layer, BzImage):
            found = prove_envelope(original, outside)[1]
        else:
            assert isinstance(layer, Compressed), "a member is a file of its own"
            found = unpack(outside, layer.codec, len(inside))
            check_packing(layer.codec, original, outside, len(inside))
        if found != inside:
            raise VerificationError(f"does not unpack to what was packed ({layer.label})", advice=_NOTHING)


def undo_of(around: Around, plain: bytes, made: Sequence[bytes], edits: tuple[Edit, ...]) -> Undo:
    """What the undo file says; of a container also how to get that back.

    `plain` is the original of what is inside, which is the whole file where nothing is around it.
    """
    before, after = around.levels[0] if around.layers else plain, made[0]
    outer = outer_change(around.layers, before, after) if around.layers else None
    return Undo(sha256_of_bytes(before), sha256_of_bytes(after), edits, outer)


def outer_change(layers: Sequence[Layer], before: bytes, after: bytes) -> OuterChange:
    """The one range in which two files differ, what they begin and end with alike taken off."""
    most = min(len(before), len(after))
    start = _common(before, after, most)
    most -= start
    end = _common(before[::-1], after[::-1], most)
    return OuterChange(
        tuple(layer.label for layer in layers), start, before[start : len(before) - end], len(after) - end - start
    )


def _common(one: bytes, other: bytes, most: int) -> int:
    """How many bytes, up to `most`, two files begin with alike."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
