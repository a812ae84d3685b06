"""The archive format (.a) as GNU `ar` and `llvm-ar --format=gnu` write it.

    !<arch> and a newline
    header of 60 bytes, content, one byte of padding where the content's size is odd        for each member

The first member may be a symbol index, `/` or `/SYM64/`: the number of symbols, for each the offset of the header of
the member that defines it, then the names, each with a NUL; big-endian numbers of 4 bytes, 8 in `/SYM64/`. Next
may come `//`, the names that do not fit a header. All other members are files.

A header is text, filled up with spaces: name 16, date 12, user 6, group 6, mode 8, size 10, and two bytes that are
always the same. A name ends with a slash; `/123` is the name at byte 123 of `//`, where it ends with a slash and a
newline.

Sources: ar(5) of System V; binutils' include/aout/ar.h; LLVM's documentation of llvm-ar.
"""

from __future__ import annotations

from typing import Final

MAGIC: Final = b"!<arch>\n"
THIN_MAGIC: Final = b"!<thin>\n"
HEADER_SIZE: Final = 60
HEADER_END: Final = b"`\n"
NAME_FIELD: Final = slice(0, 16)
SIZE_FIELD: Final = slice(48, 58)
LARGEST_MEMBER: Final = 10**10 - 1

INDEX_NAME: Final = b"/"
INDEX64_NAME: Final = b"/SYM64/"
NAMES_NAME: Final = b"//"
NAME_END: Final = b"/"
LONG_NAME_END: Final = b"/\n"
PADDING: Final = b"\n"

# How the BSD format begins a name that stands before the content, and names its symbol index.
BSD_LONG_NAME: Final = b"#1/"
BSD_INDEX_NAME: Final = b"__.SYMDEF"
