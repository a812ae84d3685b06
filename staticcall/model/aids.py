"""Other files that help to read one: names for what is stripped, and the kernel and modules around a module."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path


class NameAids(NamedTuple):
    """Where names are looked for: a `System.map`, a file of separate debug data, or a folder of those by build id.

    What the user names comes before what the file has itself.
    """

    system_map: Path | None = None
    debug_file: Path | None = None
    debug_dir: Path | None = None


class Aids(NamedTuple):
    """Everything around a file: `names`, the `vmlinux` of a module, the folder with its other `modules`, `relocs`."""

    names: NameAids = NameAids()
    vmlinux: Path | None = None
    modules: Path | None = None
    relocs: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """Those that are files, none of which may be written over."""
        every = (self.names.system_map, self.names.debug_file, self.vmlinux, self.relocs)
        return tuple(path for path in every if path is not None)


NO_NAME_AIDS = NameAids()
NO_AIDS = Aids()
