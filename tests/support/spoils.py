"""Right results of a rewrite with one thing spoilt, for tests that want every one of them refused."""

from collections.abc import Callable

from tests.support.object_model import SHT_NOBITS, Model

Spoil = Callable[[Model], object]


def survivors(data: bytes, accepted: Callable[[bytes], bool]) -> set[int]:
    """The offsets at which a bit may be another without anybody seeing it."""
    found = set()
    for at in range(len(data)):
        for bit in (0x01, 0x80):
            spoilt = bytearray(data)
            spoilt[at] ^= bit
            if accepted(bytes(spoilt)):
                found.add(at)
    return found


def without_meaning(data: bytes) -> set[int]:
    """Where the offsets of sections without bytes in the file stand."""
    model = Model(data)
    start = model.header[6]
    return {
        start + 64 * number + 24 + byte
        for number, section in enumerate(model.sections)
        if section.type == SHT_NOBITS or not section.size
        for byte in range(8)
    }


def content(name: str, at: int, value: bytes) -> Spoil:
    def spoil(model: Model) -> None:
        model.section(name).content[at : at + len(value)] = value

    return spoil
