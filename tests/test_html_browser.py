"""The HTML report of a kernel in a browser: its numbers are those of the JSON report, and people can use it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from bench.synthetic import write_image
from tests.support.browser import PHONE, objections, opened, processor_seconds, rows
from tests.support.programs import Builder
from tests.support.tool import Json, report, succeed

LINE = 64
# Processor seconds of the page's thread that each of these takes at most, whatever else the machine does.
FLUID_SECONDS = 0.5
MANY = 10_000


@pytest.fixture(scope="module")
def told(vmlinux_612: Path) -> Json:
    """The JSON report, its sites in the order of their addresses."""
    image = report(vmlinux_612)
    image["sites"].sort(key=lambda site: int(site["address"], 16))
    return image


@pytest.fixture(scope="module")
def document(vmlinux_612: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("html") / "report.html"
    succeed("report", "--format", "html", "--output", path, vmlinux_612)
    return path


@pytest.fixture(scope="module")
def small(built: Builder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with everything in it: findings, undecided sites, before and after."""
    folder = tmp_path_factory.mktemp("small")
    patched, undo, document = folder / "patched", folder / "undo.json", folder / "report.html"
    program = built("calls", "exec")
    succeed("patch", program, "--set", "alpha=alpha_fast", "--bind", "-o", patched, "--edits", undo)
    succeed("report", "--format", "html", "--edits", undo, "--fail-on", "never", "--output", document, patched)
    return document


@pytest.fixture(scope="module")
def page(chromium: Browser, document: Path) -> Iterator[Page]:
    """The report on a desktop; each test leaves it with no filters."""
    with opened(chromium, document) as page:
        yield page


def _number(text: str) -> int:
    return int(re.sub(r"\D", "", text))


def _tiles(page: Page) -> dict[str, int]:
    tiles = page.locator(".tiles li").all()
    return {tile.locator("span").inner_text(): _number(tile.locator("b").inner_text()) for tile in tiles}


def _names(page: Page, table: str) -> list[str]:
    heads: list[str] = page.eval_on_selector_all(
        f"table.{table} thead th", "heads => heads.map(head => head.textContent.trim())"
    )
    return heads


def test_the_columns_of_a_kernel_leave_source_lines_out_and_say_so(page: Page) -> None:
    heads = ["Address", "Function", "Key", "Bytes", "Instruction", "Verdict", "Reason", "Crosses"]

    assert _names(page, "sites") == heads
    assert "Source lines" in page.locator(".facts dt").all_inner_texts()


def _instruction(site: Json) -> str:
    """What stands at a site of this kernel, all of which are plain calls and jumps."""
    mnemonic = {"e8": "call", "e9": "jmp"}[site["bytes"][:2]]
    return f"{mnemonic} {site['destination']}"


def _row(site: Json) -> list[str]:
    code = bytes.fromhex(site["bytes"]).hex(" ")
    crosses = "yes" if site["crosses_line"] else "no"
    words = [site["function"] or "", site["key"], code, _instruction(site), site["verdict"], site["reason"], crosses]
    return [site["address"], *words]


def test_the_tiles_are_the_summary(page: Page, told: Json) -> None:
    summary = told["summary"]

    assert _tiles(page) == {
        "sites": summary["sites"],
        "direct": summary["direct"],
        "by trampoline": summary["trampoline"],
        "crossing a line": summary["crossing"],
        "keys": summary["keys"],
        "functions": len({(site["function"] or "").partition("+")[0] for site in told["sites"]}),
        "findings": len(told["findings"]),
    }


def test_the_bars_are_the_reasons_and_forms_with_their_numbers(page: Page, told: Json) -> None:
    shown = page.eval_on_selector_all(
        "li.share",
        """shares => shares.map(share => [
            share.querySelector(".name").textContent,
            share.querySelector(".number").textContent,
            share.querySelector("rect.fill").getAttribute("width"),
        ])""",
    )
    counts = {**told["summary"]["reasons"], **told["summary"]["forms"]}
    total = told["summary"]["sites"]

    assert {tuple(share) for share in shown} == {
        (name, f"{count:,} {100 * count / total:.1f} %", f"{100 * count / total:.2f}") for name, count in counts.items()
    }


def _all_rows(page: Page, table: str) -> list[list[str]]:
    """The rows of a table with all of them on one page, which nobody lays out."""
    found: list[list[str]] = json.loads(
        page.eval_on_selector(
            f"section:has(table.{table})",
            """section => {
                const size = section.querySelector("[aria-label='Rows on a page']");
                const before = size.value;
                const choose = value => { size.value = value; size.dispatchEvent(new Event("change")); };
                choose(0);
                const rows = [...section.querySelectorAll("tbody tr")].map(row => [...row.cells]);
                const texts = rows.map(cells => cells.map(cell => cell.textContent.trim()));
                choose(before);
                return JSON.stringify(texts);
            }""",
        )
    )
    return found


def test_the_tables_have_every_site_key_and_function(page: Page, told: Json) -> None:
    functions = Counter((site["function"] or "(outside").partition("+")[0] for site in told["sites"])
    keys = _all_rows(page, "keys")

    assert [row[:8] for row in _all_rows(page, "sites")] == [_row(site) for site in told["sites"]]
    assert {row[0]: (int(row[1]), row[6]) for row in keys} == {
        key["name"]: (key["sites"], key["func"] or "NULL") for key in told["keys"]
    }
    assert {row[0].partition(" ")[0]: int(row[1]) for row in _all_rows(page, "functions")} == functions


def test_without_a_script_every_row_is_there_to_be_seen(chromium: Browser, document: Path, small: Path) -> None:
    with opened(chromium, small, scripts=False) as page:
        for table in ("sites", "keys", "functions", "edits"):
            last = page.locator(f"table.{table} tbody tr").last
            last.scroll_into_view_if_needed()
            assert last.is_visible()
        assert page.locator("main button, main input, main select").count() == 0  # nothing that would do nothing
        shown = {row[0] for row in rows(page, "sites")}
    with opened(chromium, small) as page:
        assert shown == {row[0] for row in _all_rows(page, "sites")}
    assert '<tbody class="more">' in document.read_text("utf-8")


def test_the_numbers_of_a_key_and_a_function_are_those_of_their_sites(page: Page, told: Json) -> None:
    keys = {row[0]: [int(cell) for cell in row[1:5]] for row in rows(page, "keys")}
    functions = {row[0]: [int(cell) for cell in row[1:5]] for row in rows(page, "functions")}

    def counts(sites: list[Json]) -> list[int]:
        direct = sum(site["verdict"] == "direct" for site in sites)
        return [len(sites), direct, len(sites) - direct, sum(site["crosses_line"] for site in sites)]

    assert len(keys) == len(functions) == 25
    for name, shown in keys.items():
        assert shown == counts([site for site in told["sites"] if site["key"] == name])
    for name, shown in functions.items():
        assert shown == counts([s for s in told["sites"] if (s["function"] or "").partition("+")[0] == name])


def test_a_header_sorts_by_mouse_and_by_keyboard(page: Page, told: Json) -> None:
    head = page.locator("table.keys thead th").nth(0)
    names = sorted((key["name"] for key in told["keys"]), key=lambda name: (name.lower(), name))

    head.locator("button").click()
    up = [row[0] for row in rows(page, "keys")]
    assert head.get_attribute("aria-sort") == "ascending"
    head.locator("button").focus()
    page.keyboard.press("Enter")
    down = [row[0] for row in rows(page, "keys")]

    assert head.get_attribute("aria-sort") == "descending"
    assert page.locator("table.keys thead th[aria-sort]").count() == 1
    assert [name.lower() for name in up] == [name.lower() for name in names[:25]]
    assert [name.lower() for name in down] == [name.lower() for name in names[:-26:-1]]
    page.locator("table.keys thead button").nth(1).click()
    numbers = [int(row[1]) for row in rows(page, "keys")]
    assert numbers == sorted((key["sites"] for key in told["keys"]), reverse=True)[:25]


def test_filters_find_what_the_json_report_has(page: Page, told: Json) -> None:
    section = page.locator("section", has=page.locator("table.sites"))
    search, status = section.get_by_role("searchbox"), section.get_by_role("status")
    by_key = [site for site in told["sites"] if site["key"] == "might_resched"]
    bad = [site for site in told["sites"] if site["reason"] == "crosses-line"]

    search.fill("__SCT__MIGHT_resched ")
    assert f"1 to 25 of {len(by_key):,} found among {len(told['sites']):,} sites" == status.inner_text()
    assert [row[:8] for row in rows(page, "sites")] == [_row(site) for site in by_key[:25]]
    search.fill("")
    section.get_by_label("Only this reason").select_option("crosses-line")
    assert f"of {len(bad):,} found" in status.inner_text()
    section.get_by_label("Rows on a page").select_option("all rows")
    assert [row[:8] for row in rows(page, "sites")] == [_row(site) for site in bad]
    search.fill("no such word")
    assert status.inner_text() == f"none of {len(told['sites']):,} sites"
    assert rows(page, "sites") == []
    search.fill("")
    section.get_by_label("Rows on a page").select_option("25 rows")
    section.get_by_label("Only this reason").select_option("")
    section.get_by_role("button", name="Next page of sites").click()
    assert [row[:8] for row in rows(page, "sites")] == [_row(site) for site in told["sites"][25:50]]


def test_the_map_draws_every_site_in_its_line(page: Page, told: Json) -> None:
    pieces = page.eval_on_selector_all(
        ".map svg",
        """pieces => pieces.map(piece => ({
            first: Number(piece.dataset.first),
            places: piece.dataset.places.split(" ").map(place => place.split(".").map(Number)),
            shapes: Object.fromEntries([...piece.querySelectorAll("path")].map(
                path => [path.getAttribute("class"), path.getAttribute("d").split("M").length - 1])),
        }))""",
    )
    number = 0
    shapes = Counter[str]()
    for piece in pieces:
        assert piece["first"] == number
        shapes.update(piece["shapes"])
        lines: dict[int, int] = {}
        for row, column, length in piece["places"]:
            address = int(told["sites"][number]["address"], 16)
            number += 1
            assert (column, length) == (address % LINE, 5)
            assert lines.setdefault(address // LINE, row) == row
            if address % LINE + length > LINE:
                assert lines.setdefault(address // LINE + 1, row + 1) == row + 1
        assert list(lines) == sorted(lines)
        assert sorted(lines.values()) == list(range(len(lines)))

    assert number == len(told["sites"])
    # A site that crosses is drawn in two lines, with an arrow in each.
    assert shapes["crossing"] == shapes["mark"] == 2 * told["summary"]["crossing"]
    for verdict in ("direct", "trampoline"):
        assert shapes[verdict] == sum(s["verdict"] == verdict and not s["crosses_line"] for s in told["sites"])


def _place(page: Page, number: int) -> tuple[float, float]:
    """Where on the screen a site of the first piece of the map is, scrolled into view."""
    piece = page.locator(".map svg").first
    row, column, length = map(int, (piece.get_attribute("data-places") or "").split()[number].split("."))
    piece.scroll_into_view_if_needed()
    page.evaluate("() => document.querySelector('.map').scrollIntoView({block: 'center'})")
    box = piece.bounding_box()
    view = (piece.get_attribute("viewBox") or "").split()
    assert box is not None
    x = box["x"] + (5 + column + min(length, LINE - column) / 2) * box["width"] / float(view[2])
    return x, box["y"] + (row + 0.5) * box["height"] / (float(view[3]) / 8)


def test_pointing_at_a_site_tells_its_bytes_and_instruction(page: Page, told: Json) -> None:
    crossing = next(n for n, site in enumerate(told["sites"]) if site["crosses_line"])
    tip = page.locator("#tip")
    for number in (0, crossing, crossing + 3):
        page.mouse.move(*_place(page, number))
        assert tip.is_visible()
        assert tip.locator("dd").all_inner_texts()[:8] == _row(told["sites"][number])
    page.mouse.move(2, 2)
    assert tip.is_hidden()


def test_the_keyboard_goes_from_site_to_site_and_each_is_said(page: Page, told: Json) -> None:
    sites = told["sites"]
    crossing = [n for n, site in enumerate(sites) if site["crosses_line"]]
    said = page.locator("#said")

    def hears(number: int) -> None:
        text = said.inner_text()
        assert all(word in text for word in _row(sites[number])), text
        assert page.locator("#tip").is_visible()

    page.get_by_label("Highlight in the map").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.className") == "map scroll"
    page.keyboard.press("Home")
    hears(0)
    page.keyboard.press("ArrowRight")
    hears(1)
    page.keyboard.press("n")
    hears(crossing[0])
    page.keyboard.press("n")
    hears(crossing[1])
    page.keyboard.press("End")
    hears(len(sites) - 1)
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    line = int(sites[0]["address"], 16) // LINE
    hears(next(n for n, site in enumerate(sites) if int(site["address"], 16) // LINE != line))
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    assert [row[:8] for row in rows(page, "sites")] == [_row(sites[0])]
    page.get_by_role("searchbox", name="Filter sites").fill("")


def test_the_map_shows_where_a_key_is_called(page: Page, told: Json) -> None:
    wanted = sum(site["key"] == "cond_resched" for site in told["sites"])
    search = page.get_by_label("Highlight in the map")

    search.fill("__sct__cond_resched")
    text = page.locator("section", has=page.locator(".map")).get_by_role("status").inner_text()
    drawn = "".join(path.get_attribute("d") or "" for path in page.locator("path.found").all())
    crossing = sum(s["key"] == "cond_resched" and s["crosses_line"] for s in told["sites"])

    assert text == f"{wanted:,} of {len(told['sites']):,} sites"
    assert drawn.count("M") == wanted + crossing
    search.fill("")
    assert page.locator("path.found").count() == 0


def test_a_browser_obeys_nothing_that_was_not_in_the_report(chromium: Browser, small: Path) -> None:
    with opened(chromium, small, spotless=False) as page:
        blocked = page.evaluate(
            """async () => {
                const seen = [];
                const told = new Promise(resolve => {
                    document.addEventListener('securitypolicyviolation', event => {
                        seen.push(event.effectiveDirective.split('-')[0]);
                        if (seen.length === 2) resolve();
                    });
                    setTimeout(resolve, 30000);  // where nothing is blocked, nothing is told
                });
                const before = document.title;
                const script = document.createElement('script');
                script.textContent = 'document.title = "obeyed"';
                document.head.append(script);
                const image = new Image();
                image.src = 'data:image/gif;base64,R0lGODlhAQABAAAAACw=';
                await image.decode().catch(() => {});
                await told;
                return [document.title === before, ...seen];
            }"""
        )

    assert blocked == [True, "script", "img"]


def test_axe_finds_nothing_in_the_report_of_a_kernel(page: Page) -> None:
    light = objections(page)
    page.emulate_media(color_scheme="dark")
    dark = objections(page)
    page.emulate_media(color_scheme="light")

    assert light == dark == []


def test_axe_finds_nothing_in_a_report_with_everything_in_it_on_a_phone(chromium: Browser, small: Path) -> None:
    with opened(chromium, small, size=PHONE) as page:
        light = objections(page)
        page.emulate_media(color_scheme="dark")
        dark = objections(page, "color-contrast", "link-in-text-block")

    assert light == dark == []


def test_a_phone_scrolls_in_one_direction_and_sorts_without_headers(chromium: Browser, small: Path) -> None:
    with opened(chromium, small, size=PHONE) as page:
        width = page.evaluate("() => document.documentElement.scrollWidth")
        section = page.locator("section", has=page.locator("table.sites"))
        section.get_by_label("Sort by").select_option(label="sort by key")
        keys = [row[2] for row in rows(page, "sites")]
        page.locator(".map").scroll_into_view_if_needed()
        page.mouse.click(*_place(page, 0))
        box = page.locator("#tip").bounding_box()

    assert width == PHONE["width"]
    assert keys == sorted(keys)
    assert len(set(keys)) > 2
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= PHONE["width"]


def test_on_paper_there_are_no_controls(chromium: Browser, small: Path) -> None:
    with opened(chromium, small) as page:
        page.emulate_media(media="print")
        controls = page.locator("main input, main select, main button:not(th button), .parts").all()
        assert controls
        assert not any(control.is_visible() for control in controls)
        assert page.evaluate("() => getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_motion_is_left_out_where_it_is_not_wanted(chromium: Browser, small: Path) -> None:
    for still, behaviour in ((True, "auto"), (False, "smooth")):
        with opened(chromium, small, still=still) as page:
            assert page.evaluate("() => getComputedStyle(document.documentElement).scrollBehavior") == behaviour


def test_ten_thousand_sites_stay_fluid(chromium: Browser, tmp_path: Path) -> None:
    program, document = tmp_path / "many", tmp_path / "many.html"
    write_image(program, MANY)
    succeed("report", "--format", "html", "--fail-on", "never", "--output", document, program)
    steps = {
        "sort": "page('table.sites').querySelectorAll('thead button')[3].click()",
        "filter": "type('Filter sites', 'jmp'), type('Filter sites', '')",
        "highlight": "type('Highlight in the map', '1')",
        "scroll": "page('.map').scrollTop = page('.map').scrollHeight / 2",
    }
    took: dict[str, float] = {}
    with opened(chromium, document) as page, processor_seconds(page) as spent:
        for name, step in steps.items():
            before = spent()
            page.evaluate(
                f"""() => {{
                    const page = selector => document.querySelector(selector);
                    const type = (label, text) => {{
                        const input = page(`[aria-label="${{label}}"]`);
                        input.value = text;
                        input.dispatchEvent(new Event('input'));
                    }};
                    {step};
                    document.body.getBoundingClientRect();
                }}"""
            )
            took[name] = spent() - before

    assert all(seconds > 0 for seconds in took.values())
    assert {name: seconds for name, seconds in took.items() if seconds > FLUID_SECONDS} == {}
