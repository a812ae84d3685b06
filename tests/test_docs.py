"""The documentation site: it builds strictly, loads nothing from elsewhere, and what its pages name is there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import click
import jsonschema
import pytest
import yaml
from playwright.sync_api import Browser, ViewportSize

from staticcall.cli.main import cli
from staticcall.errors import ExitCode
from staticcall.model.findings import FINDINGS
from staticcall.model.reasons import REASONS
from tests.support.browser import DESKTOP, PHONE, Scheme, barriers
from tests.support.tool import schema
from tests.support.toolchain import TIMEOUT_SECONDS

_ROOT = Path(__file__).parents[1]
_DOCS = _ROOT / "docs"
_PAGES = sorted(path.relative_to(_DOCS).as_posix() for path in _DOCS.rglob("*.md"))

# What makes a browser load something by itself.
_LOADS = frozenset(
    {("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("video", "src"), ("audio", "src")}
    | {("object", "data"), ("embed", "src"), ("use", "href"), ("image", "href")}
)
_LINKS_THAT_LOAD = frozenset({"stylesheet", "icon", "preload", "prefetch", "preconnect", "dns-prefetch", "manifest"})


class _Page(HTMLParser):
    """What a built page loads, links to and offers as anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.described: list[bool] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors.add(values.get("id", ""))
        for name, value in values.items():
            if (tag, name) in _LOADS or name == "srcset":
                self.loads.append(value)
            if name == "style":
                self.loads += _addresses(value)
        if tag == "link" and _LINKS_THAT_LOAD & set(values.get("rel", "").split()):
            self.loads.append(values.get("href", ""))
        if tag == "a" and "href" in values:
            self.links.append(values["href"])


def _addresses(style: str) -> list[str]:
    """What a style sheet loads."""
    found = re.findall(r"url\(\s*[\"']?([^\"')]+)|@import\s+[\"']([^\"']+)", style)
    return [first or second for first, second in found]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it, with proxies that lead nowhere: a build that asked the network would fail."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=_ROOT,
        env={**os.environ, **nowhere, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, _Page]:
    """Every built page by its path."""
    found = site.rglob("*.html")
    return {path.relative_to(site).as_posix(): _Page(path.read_text(encoding="utf-8")) for path in found}


def test_every_page_is_built_and_in_the_navigation(site: Path, pages: dict[str, _Page]) -> None:
    expected = {page.removesuffix(".md") + ".html" for page in _PAGES}
    assert expected <= pages.keys()
    start = {urlsplit(link).path.removeprefix("./") for link in pages["index.html"].links}
    assert {"tutorials/program.html", "howto/ci.html", "reference/commands.html", "comparison.html"} <= start
    assert (site / "howto" / "ci" / "github.yml").is_file()


def test_pages_load_nothing_from_elsewhere(site: Path, pages: dict[str, _Page]) -> None:
    loads = {address for page in pages.values() for address in page.loads}
    for sheet in site.rglob("*.css"):
        loads.update(_addresses(sheet.read_text(encoding="utf-8")))
    assert len(loads) > 3, "pages load their own styles and scripts"
    assert [address for address in sorted(loads) if urlsplit(address).scheme not in ("", "data")] == []
    assert [address for address in sorted(loads) if address.startswith("//")] == []


def test_links_within_the_site_lead_to_pages_and_anchors(site: Path, pages: dict[str, _Page]) -> None:
    """Of the built pages, so of what was generated and of the theme's own links too."""
    broken = []
    for name, page in pages.items():
        if name == "404.html":  # served from anywhere, so its links are absolute
            continue
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = os.path.normpath(Path(name).parent / unquote(parts.path)) if parts.path else name
            anchors = pages[target].anchors if target in pages else {parts.fragment}
            if not (site / target).exists() or (parts.fragment and unquote(parts.fragment) not in anchors):
                broken.append((name, link))
    assert broken == []


@pytest.mark.parametrize("drawing", sorted(path.name for path in (_DOCS / "drawings").glob("*.svg")))
def test_drawings_tell_what_they_show_and_take_the_colours_of_the_page(drawing: str) -> None:
    text = (_DOCS / "drawings" / drawing).read_text(encoding="utf-8")
    name = drawing.removesuffix(".svg")
    assert f'aria-labelledby="{name}-title {name}-desc"' in text
    for part in ("title", "desc"):
        said = re.search(rf'<{part} id="{name}-{part}">([^<]+)</{part}>', text)
        assert said is not None
        assert len(said[1]) > 15
    assert re.findall(r"#[0-9a-fA-F]{3,8}\b(?!-)", text) == [], "colours are the style sheet's"
    used = set(re.findall(r'class="([^"]+)"', text))
    style = (_DOCS / "stylesheets" / "site.css").read_text(encoding="utf-8")
    assert {part for parts in used for part in parts.split()} <= set(re.findall(r"\.([\w-]+)", style))
    assert any(f"drawings/{drawing}" in (_DOCS / page).read_text(encoding="utf-8") for page in _PAGES)


@pytest.mark.parametrize(
    ("page", "scheme", "size"),
    [("index", "dark", PHONE), ("explanation/protocols", "light", DESKTOP), ("tutorials/program", "dark", DESKTOP)],
)
def test_pages_in_a_browser_ask_nobody_else_and_are_open_to_all(
    site: Path, chromium: Browser, page: str, scheme: Scheme, size: ViewportSize
) -> None:
    context = chromium.new_context(viewport=size, color_scheme=scheme, reduced_motion="reduce")
    view = context.new_page()
    asked: list[str] = []
    failed: list[str] = []
    view.on("request", lambda request: asked.append(request.url))
    view.on("pageerror", lambda error: failed.append(str(error)))
    view.goto((site / f"{page}.html").as_uri())
    view.wait_for_load_state("networkidle")
    assert failed == []
    assert [url for url in asked if not url.startswith((site.as_uri(), "data:", "blob:"))] == []
    assert view.evaluate("document.documentElement.scrollWidth") <= size["width"], "nothing sticks out"
    assert barriers(view) == []
    context.close()


# ---- what is generated ----


def _text(site: Path, page: str) -> str:
    return (site / "reference" / page).read_text(encoding="utf-8")


def test_the_reference_has_every_code_of_the_code(site: Path) -> None:
    for page, codes in (("reasons.html", REASONS), ("findings.html", FINDINGS)):
        text = _text(site, page)
        assert [code for code in codes if f"<code>{code}</code>" not in text] == []
    text = _text(site, "exit-codes.html")
    assert [code for code in ExitCode if f"<code>{code.value}</code>" not in text] == []


def test_the_reference_has_every_command_and_option(site: Path, pages: dict[str, _Page]) -> None:
    text = _text(site, "commands.html")
    for name, command in _commands().items():
        assert name in pages["reference/commands.html"].anchors
        for option in command.params:
            if isinstance(option, click.Option) and not option.hidden:
                assert all(f"<code>{spelling}" in text for spelling in option.opts), (name, option.opts)


def test_the_schemas_of_the_site_are_those_that_the_tool_prints(site: Path) -> None:
    folder = site / "reference" / "schemas"
    names = {path.name.removesuffix(".schema.json") for path in folder.iterdir()}
    assert {"report", "edits", "diff", "config"} <= names
    for name in names:
        assert json.loads((folder / f"{name}.schema.json").read_text(encoding="utf-8")) == schema(name)


# ---- what the pages tell the reader to do ----


def _commands() -> dict[str, click.Command]:
    context = click.Context(cli)
    found = {name: cli.get_command(context, name) for name in cli.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}


def _written(page: str) -> Iterator[tuple[str, list[str]]]:
    """The runs of the tool that a page or a file beside it shows: the command and its options."""
    text = (_DOCS / page).read_text(encoding="utf-8")
    for run in re.finditer(r"(?:^|[\s`$(])staticcall ([a-z][a-z-]+)((?: [^\n`|&;]+)?)", text):
        if run[1] in _commands():
            yield run[1], re.findall(r"(?<=\s)--?[a-z][a-z-]*", run[2])


@pytest.mark.parametrize("page", [*_PAGES, "howto/ci/github.yml", "howto/ci/gitlab.yml"])
def test_options_that_a_page_shows_exist(page: str) -> None:
    for name, options in _written(page):
        known = {spelling for option in _commands()[name].params for spelling in option.opts}
        # Words behind a run in a sentence are no options of it; those of signing tools stand in quotes.
        assert [option for option in options if option not in known] == [], (page, name)


def test_the_pages_show_runs_of_the_tool() -> None:
    assert sum(1 for page in _PAGES for _ in _written(page)) > 60


@pytest.mark.parametrize("name", ["github", "gitlab"])
def test_pipelines_are_yaml_that_runs_the_gate_last(name: str) -> None:
    text = (_DOCS / "howto" / "ci" / f"{name}.yml").read_text(encoding="utf-8")
    document = yaml.safe_load(text)
    assert isinstance(document, dict)
    runs = re.findall(r"staticcall report [^\n]*", text)
    assert "--fail-on warning" in runs[-1]
    assert all("--fail-on never" in run for run in runs[:-1])


def _settings() -> Iterator[tuple[str, str]]:
    for page in _PAGES:
        text = (_DOCS / page).read_text(encoding="utf-8")
        for body in re.findall(r"^```toml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            yield page, body


@pytest.mark.parametrize(("page", "body"), list(_settings()))
def test_settings_that_a_page_shows_are_valid(page: str, body: str) -> None:
    document = tomllib.loads(body)
    assert document, page
    jsonschema.Draft202012Validator(dict(schema("config"))).validate(document)


def test_no_page_names_a_machine_or_a_registry() -> None:
    places = re.compile(r"/(?:home|root|work)/|pypi\.org|pythonhosted|npmjs|unpkg|localhost", re.IGNORECASE)
    texts = [*_DOCS.rglob("*.md"), *_DOCS.rglob("*.yml"), *_DOCS.rglob("*.svg"), _ROOT / "mkdocs.yml"]
    assert [path.name for path in texts if places.search(path.read_text(encoding="utf-8"))] == []
