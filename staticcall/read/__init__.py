"""Reading: a path becomes an `Image`. The only room that opens input files."""

from staticcall.read.image import open_image
from staticcall.read.source import FileSource, read_whole, sha256_of

__all__ = ["FileSource", "open_image", "read_whole", "sha256_of"]
