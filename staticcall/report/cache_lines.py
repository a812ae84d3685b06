"""The cache-line map: every site drawn in its line, as compact SVG paths.

Only lines that hold sites are drawn, some sixty below each other in one piece of the map, so that a browser lays the
pieces out as the window's width allows and draws those that can be seen. All of one kind of site in a piece is one
path: ten thousand sites are some hundred shapes. What a script needs to tell the sites of a piece apart stands beside
it, as `row.column.length`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from staticcall.model.image import Image
from staticcall.model.sites import Site

ROWS: Final = 64
# In units of the drawing: a byte is 1 wide, a line 8 high; beside the bytes is room for the marks of crossing sites.
PITCH: Final = 8
GUTTER: Final = 5
CROSSING: Final = "crossing"


class Drawn(NamedTuple):
    """A site as it is drawn: its number in the table of sites, and its class, `crossing` or the verdict's."""

    number: int
    site: Site
    kind: str


class Piece(NamedTuple):
    """Lines below each other: where the first one is, the paths by class, and what is at which place.

    `first` is the number of the first site, `places` has one entry for each from there on. `width` and `height` are in
    units of the drawing; `marks` are the arrows at both ends of a break, `grid` the borders of 8-byte blocks.
    """

    label: str
    title: str
    first: int
    places: str
    width: int
    height: int
    grid: str
    paths: tuple[tuple[str, str], ...]
    marks: str


def pieces_of_map(image: Image, drawn: Sequence[Drawn], line: int) -> Iterator[Piece]:
    """The map of sites that come in the order of their addresses, in lines of `line` bytes."""
    start = 0
    rows: dict[int, int] = {}
    for position, one in enumerate(drawn):
        address = one.site.address
        first, last = address // line, (address + one.site.instruction.length - 1) // line
        if len(rows) >= ROWS and first not in rows:
            yield _piece(image, drawn[start:position], rows, line)
            start, rows = position, {}
        for number in range(first, last + 1):
            rows.setdefault(number, len(rows))
    if drawn:
        yield _piece(image, drawn[start:], rows, line)


def _piece(image: Image, drawn: Sequence[Drawn], rows: dict[int, int], line: int) -> Piece:
    paths: dict[str, list[str]] = {}
    marks: list[str] = []
    places: list[str] = []
    for one in drawn:
        address, length = one.site.address, one.site.instruction.length
        row, column = rows[address // line], address % line
        places.append(f"{row}.{column}.{length}")
        shapes = paths.setdefault(one.kind, [])
        while column + length > line:
            shapes.append(_shape(one.kind, row, column, line - column))
            if one.kind == CROSSING:
                # The arrow says that it goes on, and below where it comes from: red alone would not tell everybody.
                marks.append(f"M{line + GUTTER} {row * PITCH}l5 4l-5 4z")
                marks.append(f"M0 {(row + 1) * PITCH}l5 4l-5 4z")
            length -= line - column
            row, column = row + 1, 0
        shapes.append(_shape(one.kind, row, column, length))
    start, end = (image.where(number * line) for number in (min(rows), max(rows)))
    crossing = sum(one.kind == CROSSING for one in drawn)
    title = f"{len(rows)} lines from {start} to {end}: {len(drawn)} sites, {crossing} crossing"
    width, height = line + 2 * GUTTER, len(rows) * PITCH
    grid = "".join(f"M{GUTTER + block} 0v{height}" for block in range(8, line, 8)) if line <= 256 else ""
    return Piece(
        label=start,
        title=title,
        first=drawn[0].number,
        places=" ".join(places),
        width=width,
        height=height,
        grid=grid,
        paths=tuple((kind, "".join(shapes)) for kind, shapes in sorted(paths.items())),
        marks="".join(marks),
    )


def _shape(kind: str, row: int, column: int, length: int) -> str:
    if kind == CROSSING:  # higher than the others
        return f"M{column + GUTTER} {row * PITCH}h{length}v7h-{length}z"
    return f"M{column + GUTTER} {row * PITCH + 1}h{length}v5h-{length}z"
