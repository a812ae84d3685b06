"""What an archive (.a) holds, member by member."""

from enum import Enum, auto
from typing import NamedTuple


class MemberKind(Enum):
    """What a member is for. Only `MEMBER` is a file that somebody put into the archive."""

    INDEX = auto()
    INDEX64 = auto()
    NAMES = auto()
    MEMBER = auto()


class Member(NamedTuple):
    """One member: its header is at file offset `header`, its content is `size` bytes from `offset` on.

    `name` is the name in full, of the special members the one in their header. Names need not be unique.
    """

    name: str
    header: int
    offset: int
    size: int
    kind: MemberKind

    @property
    def end(self) -> int:
        """The file offset behind the member and its padding, which may be missing at the end of the file."""
        return self.offset + self.size + (self.size & 1)

    def content(self, data: bytes) -> bytes:
        """The member's bytes out of those of the archive."""
        return data[self.offset : self.offset + self.size]
