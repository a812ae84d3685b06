"""The report as HTML: one self-contained file for a browser.

An image is rendered where it was read, maybe in another process, as one line of JSON with its counts and then its
HTML; the frame puts them together and adds up the counts. Rows of tables are in the file as rows, so they are there
without a script; what the script adds (sorting, filtering, the map's texts) it takes from them. Nothing is fetched: the
style and the one script are allowed by their digests, and all else is forbidden to the browser.
"""

from __future__ import annotations

import json
import posixpath
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, reduce
from hashlib import sha256
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

from staticcall import __version__
from staticcall.model.report import ImageReport
from staticcall.model.sites import Policy, PolicyName, Severity
from staticcall.model.tree import NO_STATIC_CALLS
from staticcall.report.html_image import image_values, printable_path
from staticcall.report.names import common_folder

if TYPE_CHECKING:
    from jinja2 import Template

RULES: Final = {
    PolicyName.LUTOMIRSKI: "direct where the opcode is e8 and the instruction lies in one cache line",
    PolicyName.REL32: "direct where the opcode is e8 and the displacement lies in one cache line",
    PolicyName.BLOCK8: "direct where the opcode is e8 and the displacement lies in one aligned 8-byte block",
    PolicyName.TORVALDS: "direct where the call has a one-byte prefix that does nothing",
    PolicyName.KERNEL: "direct wherever mainline kernels patch, whatever the line",
}
_COUNTS: Final = ("sites", "direct", "trampoline", "undecided", "crossing", "keys", "error", "warning", "note")
_SCRIPTS: Final = ("tables.js", "map.js", "start.js")


def render_image(report: ImageReport) -> Iterator[str]:
    """One image, in pieces: a line of JSON that says how long the rest is, and its HTML."""
    summary, path = report.summary, printable_path(report.image.path)
    # That a file has no static calls is told by the list that it is in.
    severities = [finding.severity.value for finding in report.findings if finding.code != NO_STATIC_CALLS]
    name = f"f{sha256(path.encode()).hexdigest()[:12]}"
    plain = not report.sites and not report.keys and not severities
    body = "" if plain else _template("image.html").render(image_values(report), id=name)
    head = {
        "id": name,
        "path": path,
        "plain": plain,
        **{verdict: getattr(summary, verdict) for verdict in _COUNTS[:6]},
        **{severity.value: severities.count(severity.value) for severity in Severity},
        "size": len(body),
    }
    yield json.dumps(head) + "\n"
    yield body


def render_document(policy: Policy, images: Iterable[str]) -> Iterator[str]:
    """Rendered images as one HTML document, in pieces."""
    parts = _unique([part for image in images for part in _parts(image)])
    told = [part for part in parts if not part["plain"]]
    folder = _folder_of([part["path"] for part in parts]) if len(parts) > 1 else ""
    for part in parts:
        part["name"] = part["path"].removeprefix(folder)
    style, script = _inline(("report.css",)), _inline(_SCRIPTS)
    values = {
        "version": __version__,
        "policy": policy.name.value,
        "line": policy.line,
        "rule": RULES[policy.name],
        "style": style,
        "script": script,
        "csp": _content_policy(style, script),
        "parts": told,
        "folder": folder,
        "plain": [part["name"] for part in parts if part["plain"]],
        "total": {name: sum(part[name] for part in parts) for name in _COUNTS},
        "files": len(parts),
    }
    yield from _template("document.html").generate(values)


def _parts(text: str) -> Iterator[dict[str, Any]]:
    """The images in a rendered text: one, or those of an archive behind each other."""
    start = 0
    while start < len(text):
        end = text.index("\n", start) + 1
        head: dict[str, Any] = json.loads(text[start:end])
        start = end + head["size"]
        yield {**head, "body": text[end:start]}


def _unique(parts: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """The same images, no two of which have the same name for links, even where a file was given twice."""
    seen: dict[str, int] = {}
    for part in parts:
        name = part["id"]
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            part["id"] = f"{name}-{seen[name]}"
            part["body"] = part["body"].replace(name, part["id"])
    return parts


def _folder_of(paths: Sequence[str]) -> str:
    """The folder that all the files are in, with the slash behind it; empty where there is none."""
    folder = reduce(common_folder, paths, posixpath.dirname(paths[0]))
    return f"{folder}/" if folder else ""


def _content_policy(style: str, script: str) -> str:
    """What a browser may do with the document: show it, with its own style and script, and fetch nothing."""
    return (
        f"default-src 'none'; style-src {_digest(style)}; script-src {_digest(script)}; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


def _inline(names: Iterable[str]) -> str:
    """Files of the package that go into a document as they are."""
    home = files("staticcall.report") / "templates"
    return "".join(home.joinpath(name).read_text("utf-8") for name in names)


@cache
def _template(name: str) -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415 - 0.1 s, for this form alone

    environment = Environment(
        loader=PackageLoader("staticcall.report"),
        # Every name out of a file is hostile: nothing goes into the document as it is.
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["count"] = "{:,}".format
    return environment.get_template(f"{name}.j2")
