"""What a plan may ask about a file, and about the other files that the user names for it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING

from staticcall.locate.claims import locate_claims
from staticcall.model.aids import Aids
from staticcall.model.claims import Claims
from staticcall.model.evidence import Evidence
from staticcall.model.image import Image
from staticcall.model.moves import Moves

if TYPE_CHECKING:
    from staticcall.model.types import TypeSource


def evidence_of(image: Image, aids: Aids) -> Evidence:
    """Everything that a plan may ask; what is read is read once, and only where it is asked for."""

    @cache
    def types() -> tuple[TypeSource, ...]:
        from staticcall.pipeline.types import sources_of  # noqa: PLC0415 - seldom asked for

        return sources_of(image, aids.vmlinux)

    def claims(ranges: Iterable[tuple[int, int]]) -> Claims:
        return locate_claims(image, ranges, writers_only=True)

    @cache
    def moves() -> Moves:
        from staticcall.read.moves import read_moves  # noqa: PLC0415 - seldom asked for

        return read_moves(image, aids.relocs)

    return Evidence(types, claims, moves)
