"""HTML reports in headless Chromium, as a person has them: with and without scripts, on a desktop and on a phone.

    with chromium() as browser, opened(browser, report) as page:
        page.locator("table.sites").count()

Nothing is downloaded for it: the browser is the distribution's. A page that says anything on its console, throws, asks
for anything but the report itself or breaks its own content policy fails in `opened`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

Scheme = Literal["light", "dark"]

DESKTOP = ViewportSize(width=1280, height=900)
PHONE = ViewportSize(width=390, height=844)
_OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def missing_tools() -> list[str]:
    """The programs that are needed here and not installed."""
    return [] if shutil.which("chromium") else ["chromium"]


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser, for many pages."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=_OPTIONS)
        yield browser
        browser.close()


@contextmanager
def opened(
    browser: Browser,
    report: Path,
    *,
    scheme: Scheme = "light",
    size: ViewportSize = DESKTOP,
    scripts: bool = True,
    still: bool = True,
    spotless: bool = True,
) -> Iterator[Page]:
    """A report that is loaded; sees at the end that nothing went wrong in it and that it fetched nothing.

    `still` is a user's wish for no motion; a test that makes trouble says that the page is not `spotless`.
    """
    context = browser.new_context(
        viewport=size,
        color_scheme=scheme,
        java_script_enabled=scripts,
        reduced_motion="reduce" if still else "no-preference",
    )
    page = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report.as_uri())
    yield page
    context.close()
    assert said == [] or not spotless
    assert {url.partition("#")[0] for url in asked} == {report.as_uri()}


def barriers(page: Page, *rules: str) -> list[str]:
    """Those of the `objections` that axe calls serious or critical."""
    return [objection for objection in objections(page, *rules) if objection.startswith(("serious", "critical"))]


def objections(page: Page, *rules: str) -> list[str]:
    """What axe finds to be in the way of people who see, hear or move less, however small, each with where it is.

    All rules are asked for, with those that are but good practice, or some `rules` alone.
    """
    options = {"resultTypes": ["violations"], **({"runOnly": list(rules)} if rules else {})}
    violations = Axe().run(page, options=options).response["violations"]
    return [
        f"{violation['impact']} {violation['id']}: {violation['nodes'][0]['html'][:200]}" for violation in violations
    ]


@contextmanager
def processor_seconds(page: Page) -> Iterator[Callable[[], float]]:
    """What the thread that runs a page's script, style and layout has spent so far; other processes do not count."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def spent() -> float:
        metrics = session.send("Performance.getMetrics")["metrics"]
        return float(next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration"))

    yield spent
    session.detach()


def rows(page: Page, table: str) -> list[list[str]]:
    """The texts of the rows of a table that are in the page at present."""
    # As one text: the driver takes a hundred times as long for the same cells as values.
    found: list[list[str]] = json.loads(
        page.eval_on_selector(
            f"table.{table}",
            "table => JSON.stringify([...table.tBodies].flatMap(body => [...body.rows])"
            ".map(row => [...row.cells].map(cell => cell.textContent.trim())))",
        )
    )
    return found
