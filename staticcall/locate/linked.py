"""Locating in linked images, and in objects placed like them: table, code and trampolines become sites and keys."""

from __future__ import annotations

from staticcall.abi import static_call
from staticcall.locate.claims import about_claims
from staticcall.locate.dialect import read_dialect
from staticcall.locate.keys import locate_keys
from staticcall.locate.placed import sources_of, with_relocated
from staticcall.locate.reconcile import findings_of, with_scan
from staticcall.locate.sites import sites_of
from staticcall.locate.table import find_table, read_records
from staticcall.locate.trampolines import locate_trampolines, trampolines_behind
from staticcall.model.image import Image
from staticcall.model.sites import Located


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
    records = read_records(image, place) if place else []
    trampolines = locate_trampolines(image, symbols)
    if image.placement is not None:
        records, shown = with_relocated(image.placement, records, symbols)
        sites = tuple(site._replace(sources=sources_of(site, shown)) for site in sites_of(image, records))
    else:
        sites = sites_of(image, records)
    # Where a destination has no name, its bytes may still say that it is a trampoline.
    trampolines |= trampolines_behind(image, sites, trampolines)
    dialect = read_dialect(image, named, trampolines.values())
    keys = locate_keys(image, symbols, records, trampolines, sites)
    if scan:
        from staticcall.locate.scan import scan_code  # noqa: PLC0415 - imports numpy and capstone, 0.2 s

        sites = with_scan(sites, scan_code(image, trampolines, sites), keys)
    located = Located(place, sites, keys, trampolines, dialect, ())
    contested = about_claims(image, located, named, thorough=scan or image.placement is not None)
    return located._replace(findings=(*findings_of(image, located), *contested))
