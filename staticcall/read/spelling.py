"""Names that are spelt when somebody asks for them: a kernel has 150,000, and a report needs one in ten.

A name is some codes, each of which stands for a text; the first letter of all is nm's and not the name's. Whoever asks
for names that begin in some way is answered by the first two codes of each: few pairs can begin so.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate, compress
from typing import Final

from staticcall.abi import elf64
from staticcall.errors import MalformedError
from staticcall.model.symbols import Stem

# KSYM_NAME_LEN is 512 at most, and the kernel itself cuts what is longer.
LONGEST: Final = 512
# Ten times as many bytes as any kernel's.
_MOST_NAMES: Final = 1 << 26
# A name stands in for as many bytes of a table of strings, so that an offset there tells its number.
_ROOM_BITS: Final = 10
_ROOM: Final = 1 << _ROOM_BITS


class Spelling:
    """What is asked of a table of strings, for names that are codes. The name number n begins at the offset 1024 n."""

    def __init__(self, data: bytes, bodies: Sequence[int], ends: Sequence[int], texts: Sequence[bytes]) -> None:
        """Each name is the codes in data from its body up to its end; at least one stands behind the last one's."""
        self._data = data
        self._bodies = bodies
        self._ends = ends
        self._texts = texts
        pairs = b"".join([data[body : body + 2] for body in bodies])
        self._pairs = elf64.column(pairs, "H", 0, 1)  # the first code is the lower byte
        self._last = (-1, b"")
        self._all: tuple[bytes, list[int]] | None = None
        self._firsts = set(pairs[::2])
        self.complete = all(texts[code] for code in self._firsts)
        letters = bytes(text[0] if text else 0 for text in texts)
        self.letters = pairs[::2].translate(letters)

    def offsets(self) -> array[int]:
        """Where each name begins."""
        return array("I", range(0, len(self._bodies) << _ROOM_BITS, _ROOM))

    def initials(self) -> bytes:
        """The first byte of each name."""
        texts = self._texts
        initial = {pair: (texts[pair & 0xFF] + texts[pair >> 8] + b"\0\0")[1] for pair in set(self._pairs)}
        return bytes(map(initial.__getitem__, self._pairs))

    def _name(self, number: int) -> bytes:
        last, name = self._last
        if number != last:
            codes = self._data[self._bodies[number] : self._ends[number]]
            name = b"".join(map(self._texts.__getitem__, codes))[1 : LONGEST + 1]
            self._last = number, name
        return name

    def find(self, piece: bytes, start: int, /) -> int:
        """Where the name at an offset ends, which is all that may be looked for."""
        if piece != b"\0":
            raise ValueError(f"{piece!r} is looked for among names that are not spelt")
        number = start >> _ROOM_BITS
        return (number << _ROOM_BITS) + len(self._name(number)) if number < len(self._bodies) else -1

    def __getitem__(self, part: slice, /) -> bytes:
        number = part.start >> _ROOM_BITS
        first = number << _ROOM_BITS
        return self._name(number)[part.start - first : part.stop - first]

    def starts(self, stems: Iterable[Stem]) -> set[int]:
        """The offsets of all names with one of the stems behind one of its leads."""
        beginnings: set[bytes] = set()
        inner: list[tuple[bytes, int]] = []
        for stem, leads in stems:
            for lead in leads:
                if isinstance(lead, bytes):
                    beginnings.add(lead + stem)
                elif lead:
                    inner.append((stem, lead))
                else:
                    beginnings.add(stem)
        return {number << _ROOM_BITS for number in (*self._beginning(beginnings), *self._having(inner))}

    def _beginning(self, beginnings: set[bytes]) -> Iterable[int]:
        """Numbers of the names that begin in one of some ways; a zero byte is the name's end."""
        if not beginnings:
            return
        fits: set[int] = set()
        for beginning in beginnings:
            fits.update(self._pairs_that_begin(beginning.removesuffix(b"\0")))
        whole = {beginning[:-1] for beginning in beginnings if beginning.endswith(b"\0")}
        parts = tuple(beginning for beginning in beginnings if not beginning.endswith(b"\0"))
        for number in compress(range(len(self._bodies)), map(fits.__contains__, self._pairs)):
            name = self._name(number)
            if name.startswith(parts) or name in whole:
                yield number

    def _pairs_that_begin(self, beginning: bytes) -> Iterable[int]:
        seconds: dict[bytes, list[int]] = {}
        for first in self._firsts:
            known = self._texts[first][1:]
            rest = beginning[len(known) :]
            if not (beginning.startswith(known) or known.startswith(beginning)):
                continue
            if rest not in seconds:
                texts = enumerate(self._texts)
                seconds[rest] = [code << 8 for code, text in texts if rest.startswith(text) or text.startswith(rest)]
            yield from map(first.__or__, seconds[rest])

    def _having(self, stems: Iterable[tuple[bytes, int]]) -> Iterable[int]:
        """Numbers of the names that have a stem behind some bytes of anything; for these all names are spelt."""
        for stem, lead in stems:
            if self._all is None:
                names, left = [], _MOST_NAMES
                for number in range(len(self._bodies)):
                    names.append(self._name(number) + b"\0")
                    left -= len(names[-1])
                    if left < 0:
                        raise MalformedError("has more names than any kernel", advice="its kallsyms are damaged")
                self._all = b"".join(names), [0, *accumulate(map(len, names))]
            strings, starts = self._all
            place = strings.find(stem)
            while place >= 0:
                number = bisect_right(starts, place) - 1
                if place - starts[number] == lead:
                    yield number
                place = strings.find(stem, place + 1)
