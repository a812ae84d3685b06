"""Where text for people is shown, if that is a terminal."""

from typing import NamedTuple


class Terminal(NamedTuple):
    """What a terminal takes: `width` in columns, whether it shows colour, and more than ASCII."""

    width: int
    colour: bool = False
    unicode: bool = True
