"""What a file says about a change beyond its static calls; each is read when it is first asked for."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from staticcall.model.claims import Claims
from staticcall.model.moves import Moves

if TYPE_CHECKING:
    from staticcall.model.types import TypeSource


class Evidence(NamedTuple):
    """`types` of functions, the best data first, `claims` on ranges of code, `moves` of a kernel.

    The claims are of tables whose owners write, and not only name code.
    """

    types: "Callable[[], Sequence[TypeSource]]"
    claims: Callable[[Iterable[tuple[int, int]]], Claims]
    moves: Callable[[], Moves]
