"""The kernel and the modules around a module, each read once for all files of a run."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path

from staticcall.errors import InputError, UsageError
from staticcall.locate.foreign import definer_of
from staticcall.locate.linked import locate
from staticcall.model.aids import Aids
from staticcall.model.surroundings import Definer, Surroundings
from staticcall.read.image import open_image
from staticcall.read.inputs import split_member

NOTHING = Surroundings()
_KERNEL = "vmlinux"
# What the kernel's tools take for a module.
_ENDINGS = (".ko", ".ko.gz", ".ko.xz", ".ko.zst")


def surroundings_of(aids: Aids) -> Surroundings:
    """What is around the modules of a run; asked again for the same files, it is the same value.

    A process that is forked later has it too, so whoever looks at many files should ask before. Raises what reading
    the kernel raises, and `UsageError` where it is none, or `modules` no folder.
    """
    if aids.vmlinux is None and aids.modules is None:
        return NOTHING
    return _read(aids.vmlinux, aids.modules, _identity(aids.vmlinux), _identity(aids.modules))


def _identity(path: Path | None) -> tuple[int, ...] | None:
    """What changes when a file is replaced."""
    if path is None:
        return None
    try:
        state = split_member(path)[0].stat()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", path=path) from error
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns


@lru_cache(maxsize=1)
def _read(vmlinux: Path | None, modules: Path | None, *_: object) -> Surroundings:
    return Surroundings(
        None if vmlinux is None else _kernel(vmlinux), None if modules is None else _module_finder(modules)
    )


def _kernel(path: Path) -> Definer:
    with open_image(path) as image:
        if image.placement is not None or not image.kernel:
            raise UsageError(f"--vmlinux {path} is no kernel")
        located = locate(image)
        if not any(key.symbol for key in located.keys.values()):
            raise UsageError(
                f"--vmlinux {path} has no names of static calls", advice="give the one with a symbol table"
            )
        return definer_of(image, located, _KERNEL)


def _module_finder(folder: Path) -> Callable[[str], Definer | None]:
    """Who finds a module below a folder by the name that it has when it is loaded, and reads it once."""
    if not folder.is_dir():
        raise UsageError(f"--modules {folder} is no folder")

    @cache
    def files() -> dict[str, Path]:
        # Where several have a name, that in `updates` comes first: depmod.d(5).
        found = (path for path in folder.rglob("*.ko*") if path.name.endswith(_ENDINGS) and path.is_file())
        ordered = sorted(found, key=lambda path: ("updates" in path.relative_to(folder).parts[:-1], path))
        return {path.name.partition(".ko")[0].replace("-", "_"): path for path in ordered}

    @cache
    def module(name: str) -> Definer | None:
        path = files().get(name)
        if path is None:
            return None
        with open_image(path) as image:
            if image.placement is None or not image.kernel:
                return None
            return definer_of(image, locate(image), name)

    return module
