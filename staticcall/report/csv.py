"""The report as CSV (RFC 4180): a header, and a row for each site, with the values and names of the JSON report.

Null is an empty cell, several sources are joined by spaces, addresses are hexadecimal. Names are whatever the file
says, and a spreadsheet takes some of that for a formula: a cell that would begin with one of = + - @ (of full width
as well), maybe after white space, or with an apostrophe gets an apostrophe in front; so does one that would begin with
a tab or the end of a line. Whoever wants the name takes one off again.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from io import StringIO
from typing import Final

from staticcall.model.report import ImageReport
from staticcall.model.sites import Policy
from staticcall.report.json import site_members
from staticcall.report.names import Names, shown

# In this order, which later versions only add to, at the end.
COLUMNS: Final = (
    "path",
    "record",
    "address",
    "section",
    "offset",
    "file_offset",
    "function",
    "key",
    "trampoline",
    "tail",
    "form",
    "bytes",
    "length",
    "destination",
    "crosses_line",
    "verdict",
    "reason",
    "sources",
    "pinned",
    "placement",
)
# What spreadsheets take for the start of a formula, some of them in full width too; and the guard.
_FORMULA: Final = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20", "'")
# What they may take off before they look.
_SPACE: Final = ("\t", "\r", "\n")


def render_document(_policy: Policy, images: Iterable[str]) -> Iterator[str]:
    """Rendered images below one header, in pieces."""
    yield ",".join(COLUMNS) + "\r\n"
    yield from images


def render_image(report: ImageReport) -> Iterator[str]:
    """The rows of one image, in one piece."""
    text = StringIO(newline="")
    writer = csv.writer(text)
    names = Names(report.image, report.sites, report.keys)
    path = shown(report.image.path)
    for site, verdict in zip(report.sites, report.verdicts, strict=True):
        members = site_members(report, names, site, verdict) | {"path": path}
        writer.writerow([_cell(members.get(column)) for column in COLUMNS])
    yield text.getvalue()


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        value = " ".join(value)
    text = str(value)
    return f"'{text}" if text.lstrip().startswith(_FORMULA) or text.startswith(_SPACE) else text
