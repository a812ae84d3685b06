"""Keys that a module uses and another file defines: the kernel, or a module that it needs.

A module names the key of a foreign static call where it may update it, else the trampoline alone. Both have to be
exported. When the module is loaded the kernel finds the key of a trampoline in a table of its own, of two self-relative
32-bit fields per record as the table of sites has:

    record n at R:  s32 tramp  R + tramp     = the trampoline
                    s32 key    R + 4 + key   = its key

Only the kernel's own table is asked, so a trampoline of another module has no key there, and a module that uses one is
not loaded. What a module needs beside the kernel is in its `.modinfo`, as `depends=`.

Sources: kernel/static_call_inline.c (before 5.18 kernel/static_call.c), static_call_add_module() and
tramp_key_lookup(); include/linux/static_call_types.h, struct static_call_tramp_key; kernel/module/internal.h, struct
kernel_symbol; scripts/mod/modpost.c, add_depends(); Linux 5.12 to 6.12.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from staticcall.abi import elf64, module_layout, static_call
from staticcall.model.image import Image
from staticcall.model.sites import Definition, Finding, Key, Located, Severity
from staticcall.model.surroundings import Definer, Surroundings

_TRAMP_KEYS = (".static_call_tramp_key", "__start_static_call_tramp_key", "__stop_static_call_tramp_key")
_EXPORTS = (
    ("__ksymtab", "__start___ksymtab", "__stop___ksymtab"),
    ("__ksymtab_gpl", "__start___ksymtab_gpl", "__stop___ksymtab_gpl"),
)
_EXPORT_PREFIX = "__ksymtab_"
# Value, name and namespace, each relative to its own address.
_EXPORT_SIZE, _EXPORT_NAME = 12, 4
_STEMS = ((b"static_call_tramp_key", (8, 7)), (b"___ksymtab", (6, 7)))
_NAME = re.compile(rb"[A-Za-z_.$][\w.$]*", re.ASCII)
_LONGEST_NAME = 512
# More than a hundred thousand entries: a kernel has some ten thousand.
_LARGEST_TABLE = 1 << 21
_PREFIXES = (static_call.KEY_PREFIX, static_call.TRAMPOLINE_PREFIX)


# What others may use


def definer_of(image: Image, located: Located, owner: str) -> Definer:
    """What a kernel or a module has for modules; the image is not needed any more afterwards."""
    return Definer(
        owner,
        release_of(located),
        _definitions(image, located, owner),
        _exported_by_module(image) if image.placement is not None else _exported_by_kernel(image),
        {} if image.placement is not None else _keys_by_trampoline(image, located),
    )


def release_of(located: Located) -> str:
    """The release of a kernel, or of that which a module was built for, as in `uname -r`; empty if it is not said."""
    words = located.dialect.banner.split()
    if words and words[0].startswith("vermagic="):
        return words[0].partition("=")[2]
    return words[2] if len(words) > 2 else ""


def _definitions(image: Image, located: Located, owner: str) -> Mapping[str, Definition]:
    own = [key for key in located.keys.values() if not key.slot.elsewhere]
    names = image.names_at(key.slot.value for key in own)
    found = {}
    for key in own:
        target = located.target_of(key, names)
        found[key.name] = Definition(owner, target.kind, target.name)
    return found


def _keys_by_trampoline(image: Image, located: Located) -> Mapping[str, str] | None:
    table = _table(image, *_TRAMP_KEYS)
    if table is None:
        return None
    start, content = table
    found = {}
    for at in range(0, len(content) - len(content) % static_call.RECORD_SIZE, static_call.RECORD_SIZE):
        trampoline, key = static_call.RECORD.unpack_from(content, at)
        home = located.trampolines.get(start + at + trampoline)
        own = located.keys.get(start + at + 4 + key)
        if home is not None and own is not None:
            found[home.name] = own.name
    return found


def _table(image: Image, section: str, first: str, last: str) -> tuple[int, bytes] | None:
    """Address and contents of a table of the kernel's: by its section, else by the symbols around it."""
    found = image.section_named((section,))
    if found is not None:
        start, stop = found.address, found.address + found.size
    else:
        symbols = {symbol.name: symbol.address for symbol in image.symbols.matching(_STEMS)}
        if first not in symbols or last not in symbols:
            return None
        start, stop = symbols[first], symbols[last]
    if not 0 <= stop - start <= _LARGEST_TABLE or image.offset_of(start, stop - start) is None:
        return None
    return start, image.read_at(start, stop - start)


def _exported_by_kernel(image: Image) -> frozenset[str] | None:
    """The keys and trampolines among the exported symbols; None where the tables cannot be made sense of."""
    names: set[str] = set()
    for parts in _EXPORTS:
        table = _table(image, *parts)
        if table is None or len(table[1]) % _EXPORT_SIZE:
            return None
        start, content = table
        offsets = elf64.column(content, "i", 1, _EXPORT_SIZE // 4)
        places = [start + at * _EXPORT_SIZE + _EXPORT_NAME + offset for at, offset in enumerate(offsets)]
        for _, _, code in image.read_each(sorted(places), _LONGEST_NAME):
            name = _NAME.match(code)
            if name is None:
                return None
            if name[0].startswith(b"__SC"):
                names.add(name[0].decode("ascii"))
    return frozenset(names)


def _exported_by_module(image: Image) -> frozenset[str] | None:
    """The same of a module, by the symbols that stand at its exports; None where it has lost them all."""
    assert image.placement is not None, "a module is an object"
    symbols = image.placement.file.symbols
    names = {name.decode(errors="backslashreplace") for name in symbols.endings(_EXPORT_PREFIX.encode()).values()}
    return frozenset(name for name in names if name.startswith(_PREFIXES)) if names else None


# What a module uses


def with_surroundings(image: Image, located: Located, around: Surroundings) -> Located:
    """The static calls of a module, the keys that it does not define looked up in what is around it.

    Whatever is no part of a kernel stays as it is. Adds findings about keys that nobody defines, where that is sure.
    """
    if image.placement is None or not image.kernel:
        return located
    foreign = [key for key in located.keys.values() if key.slot.elsewhere]
    if not foreign:
        return located
    own = release_of(located)
    findings: list[Finding] = []
    kernel = around.kernel
    if kernel is not None and own and kernel.release and own != kernel.release:
        findings.append(_other_kernel(own, kernel))
        kernel = None
    needed = _needed(image)
    modules, missing = _found(around, needed or (), own)
    keys = dict(located.keys)
    for key in foreign:
        definition = _definition(key, kernel, modules)
        if definition is not None:
            keys[key.address] = key._replace(slot=key.slot._replace(definition=definition))
        elif kernel is not None and needed is not None:
            findings += _unresolved(key, kernel, modules, needed, missing)
    return located._replace(keys=keys, findings=(*located.findings, *findings))


def _needed(image: Image) -> tuple[str, ...] | None:
    """The names of the modules that a final module needs; None of an object that is none."""
    section = image.section_named((static_call.MODULE_INFO_SECTION,))
    if section is None or section.type == elf64.SHT_NOBITS or not image.section_named((module_layout.THIS_MODULE,)):
        return None
    entries = image.source.read(section.offset, section.size).split(b"\0")
    listed = next((entry for entry in entries if entry.startswith(b"depends=")), None)
    if listed is None:
        return None
    names = listed.partition(b"=")[2].decode("utf-8", "backslashreplace").split(",")
    return tuple(name.replace("-", "_") for name in names if name)


def _found(around: Surroundings, needed: Iterable[str], release: str) -> tuple[list[Definer], list[str]]:
    """The modules that are there, and for the same kernel; and the names of the others."""
    modules: list[Definer] = []
    missing: list[str] = []
    for name in needed:
        module = around.module(name) if around.module else None
        if module is None or (release and module.release and release != module.release):
            missing.append(name)
        else:
            modules.append(module)
    return modules, missing


def _definition(key: Key, kernel: Definer | None, modules: Iterable[Definer]) -> Definition | None:
    if key.symbol.startswith(static_call.TRAMPOLINE_PREFIX):
        if kernel is None or not kernel.offers(key.symbol):
            return None
        known = kernel.by_trampoline
        return kernel.keys.get(key.name if known is None else known.get(key.name, ""))
    definers = modules if kernel is None else (kernel, *modules)
    return next((d.keys[key.name] for d in definers if key.name in d.keys and d.offers(key.symbol)), None)


def _other_kernel(own: str, kernel: Definer) -> Finding:
    message = f"the module was built for Linux {own}, and the kernel is {kernel.release}: its keys are not looked up"
    return Finding("other-kernel", Severity.ERROR, message)


def _unresolved(
    key: Key, kernel: Definer, modules: Iterable[Definer], needed: tuple[str, ...], missing: list[str]
) -> Iterator[Finding]:
    """What to say of a key that is not found: an error if no file is left that could define it."""
    by_trampoline = key.symbol.startswith(static_call.TRAMPOLINE_PREFIX)
    what = f"{'trampoline' if by_trampoline else 'key'} {key.symbol}"
    outcome = "the kernel does not load the module"
    if missing:
        message = f"{what} is not defined in the kernel; not looked into: {', '.join(missing)}"
        yield Finding("unresolved-key", Severity.NOTE, message, key.address)
        return
    definer = next((one for one in (kernel, *modules) if key.name in one.keys), None)
    if definer is None:
        places = " or ".join(("the kernel", *needed))
        message = f"{what} is not defined in {places}: {outcome}"
    elif not definer.offers(key.symbol):
        message = f"{what} is defined in {definer.owner} and not exported: {outcome}"
    else:
        message = f"{what} of {definer.owner} has no key in the kernel's table for trampolines: {outcome}"
    yield Finding("unresolved-key", Severity.ERROR, message, key.address)
