"""Locating in linked images, and in objects placed like them: table, code and trampolines become sites and keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from staticcall.abi import elf64, static_call
from staticcall.locate.claims import about_claims
from staticcall.locate.dialect import read_dialect
from staticcall.locate.keys import locate_keys
from staticcall.locate.placed import placed_sites, with_relocated
from staticcall.locate.reconcile import findings_of, with_scan
from staticcall.locate.sites import sites_of
from staticcall.locate.table import find_table, read_records
from staticcall.locate.trampolines import locate_trampolines, trampolines_behind
from staticcall.model.form import Form
from staticcall.model.image import Image
from staticcall.model.sites import Finding, Located, Trampoline
from staticcall.model.symbols import Symbol


def locate(image: Image, *, table: str | None = None, scan: bool = False) -> Located:
    """Locate every static call of an image.

    `table` is START:STOP, two addresses in hex or two symbols, for an image that does not say itself where
    its records are. With `scan` the code is searched as well. The sites come in order of their addresses.
    Raises `MalformedError` for a table that cannot be one, and `UsageError` for a `table` that names nothing.
    """
    # One walk over the symbol table for all that has a name; a walk is a tenth of a report's time.
    symbols = image.symbols.matching(static_call.SYMBOL_STEMS)
    named = {symbol.name: symbol for symbol in reversed(symbols)}
    place = find_table(image, named, table)
    shaped: tuple[Finding, ...] = ()
    if place is None and image.placement is None and (image.kernel or scan or not image.sections):
        from staticcall.locate.shape import table_by_shape  # noqa: PLC0415 - imports numpy, 0.1 s

        place, shaped = table_by_shape(image)
    records = read_records(image, place) if place else []
    trampolines = locate_trampolines(image, symbols)
    if image.placement is not None:
        records, shown = with_relocated(image.placement, records, symbols)
        sites = placed_sites(image, records, shown)
    else:
        sites = sites_of(image, records)
    # Where a destination has no name, its bytes may still say that it is a trampoline.
    trampolines |= trampolines_behind(image, sites, trampolines)
    keys = locate_keys(image, symbols, records, trampolines, sites)
    landmarks: dict[str, int] = {}
    if place is not None and not _says_whose(image, symbols, trampolines):
        from staticcall.locate.nameless import (  # noqa: PLC0415 - seldom asked for
            jump_table_before,
            landmarks_of,
            pairings_of,
            trampolines_agreeing,
            trampolines_beside,
        )

        trampolines |= trampolines_agreeing(image, sites, keys, trampolines)
        trampolines |= trampolines_beside(image, trampolines)
        # Sites say it for sure; two words side by side may be anything.
        owners = {key.trampoline.address: address for address, key in keys.items() if key.trampoline}
        found = pairings_of(image, place, trampolines, keys.keys())
        pairs = {key: home for key, home, _ in found if owners.get(home, key) == key}
        keys = locate_keys(image, symbols, records, trampolines, sites, pairs)
        if image.kernel:
            landmarks = landmarks_of(image, keys, trampolines, sites)
            ends = zip(static_call.JUMP_TABLE_ENDS, jump_table_before(image, place) or (), strict=False)
            named = {name: Symbol(name, end, 0, elf64.STT_NOTYPE, elf64.STB_GLOBAL, 0) for name, end in ends} | named
    addresses = landmarks | {name: symbol.address for name, symbol in named.items()}
    # Where nothing can name the helper that conditional tails need, a kernel that has such sites is taken to have it.
    jcc = not image.symbols and any(site.instruction.form is Form.JCC for site in sites)
    dialect = read_dialect(image, addresses, trampolines.values(), jcc=jcc)
    if scan:
        from staticcall.locate.scan import scan_code  # noqa: PLC0415 - imports numpy and capstone, 0.2 s

        sites = with_scan(sites, scan_code(image, trampolines, sites), keys)
    located = Located(place, sites, keys, trampolines, dialect, ())
    contested = about_claims(image, located, named, thorough=scan or image.placement is not None)
    findings = findings_of(image, located)
    if shaped:  # there is something, only nobody knows where
        findings = (*shaped, *(finding for finding in findings if finding.code not in ("no-static-calls", "no-table")))
    return located._replace(findings=(*findings, *contested))


def _says_whose(image: Image, symbols: Iterable[Symbol], trampolines: Mapping[int, Trampoline]) -> bool:
    """Whether names tell which trampoline is whose: those of the keys, or in older programs of the trampolines."""
    if image.placement is not None or any(symbol.name.startswith(static_call.KEY_PREFIX) for symbol in symbols):
        return True
    return not image.kernel and bool(trampolines) and all(t.name for t in trampolines.values())
