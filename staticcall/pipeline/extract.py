"""The innermost file out of all that is around it, and what that is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from staticcall.errors import InputError, UnsupportedError, about
from staticcall.model.container import BzImage, Compressed, Layer
from staticcall.read.inputs import container_at, members_of, open_input, split_member

_NUMBER = 14


def extract(path: Path) -> bytes:
    """What is in a file: the module without its compression, the kernel out of its boot image, the member named.

    Raises `UnsupportedError` where there is nothing around it, and as `open_input` does.
    """
    with about(path), open_input(path) as (source, layers):
        if not layers:
            raise UnsupportedError("has nothing around it", advice="it is the file itself")
        data = source.whole()
        source.check_unchanged()
        return data


def publish_extracted(path: Path, target: Path, data: bytes) -> None:
    """Write it under its name in one step; raises `UsageError` where that is the input, `OutputError`."""
    from staticcall.write.files import refuse_collisions  # noqa: PLC0415 - only where something is written
    from staticcall.write.whole import stage_whole  # noqa: PLC0415 - only where something is written

    file, _ = split_member(path)
    refuse_collisions((file, target))
    with stage_whole(file, target, data) as (_, publish):
        publish()


def listing(path: Path) -> Iterator[str]:
    """Lines on what is around a file, the outermost layer first, and on the members of an archive.

    Raises `InputError` and its kinds where it cannot be read or is damaged.
    """
    with about(path):
        if container_at(path) is None:
            try:
                with open_input(path) as (source, layers):
                    yield from map(_line, layers)
                    yield f"{source.size:>{_NUMBER},}  {_kind(source.read(0, min(source.size, 4)))}"
                return
            except UnsupportedError:
                # What is compressed may be an archive.
                if not _has_members(path):
                    raise
        for entry in members_of(path):
            size = f"{entry.size:,}" if entry.regular else "-"
            yield f"{size:>{_NUMBER}}  {entry.name}{'' if entry.link is None else f' -> {entry.link}'}"


def _has_members(path: Path) -> bool:
    try:
        next(members_of(path), None)
    except InputError:
        return False
    return True


def _line(layer: Layer) -> str:
    match layer:
        case BzImage():
            place = f"payload of {layer.size:,} bytes at {layer.offset:#x}"
            return f"{'':>{_NUMBER}}  bzImage: {place}, {_described(layer.payload)}"
        case Compressed():
            return f"{'':>{_NUMBER}}  {_described(layer)}"
    return f"{'':>{_NUMBER}}  {layer.label}: {layer.name}"


def _described(layer: Compressed) -> str:
    settings = (f"{name} {value:,}" for name, value in layer.settings if isinstance(value, int))
    return ", ".join((layer.codec.value, *settings))


def _kind(head: bytes) -> str:
    return "ELF file" if head == b"\x7fELF" else "other data"
