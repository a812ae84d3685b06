"""The report as Markdown: what a Markdown reader finds in it is what the JSON report says, and it is short."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from staticcall.errors import printable
from staticcall.model.reasons import REASONS
from staticcall.model.sites import Policy
from staticcall.report.markdown import render_document
from tests.support.hostile import NAMES, objects_named, twins
from tests.support.markdown import Page, read_page
from tests.support.objects import Objects
from tests.support.programs import Builder
from tests.support.tool import Json, report_document, staticcall

# A comment on GitHub holds 65,536 characters.
MOST = 60_000
FOLDED = {"<details>", "</details>", "<code>", "</code>", ""}


def markdown(*arguments: str | Path) -> str:
    outcome = staticcall("report", "--format", "markdown", "--fail-on", "never", *arguments)
    assert (outcome.code, outcome.err) == (0, "")
    return outcome.out


def harmless(page: Page) -> bool:
    """Whether nothing in it is anybody's but the renderer's own."""
    html = {one for one in page.html if not (one.startswith("<summary>") and one.endswith("</summary>"))}
    return html <= FOLDED and not page.others & {"image", "link_open", "fence", "hr", "blockquote_open"}


def expected_verdicts(images: list[Json]) -> list[list[str]]:
    """The rows of the first table, by the JSON report."""
    sites = Counter((site["verdict"], site["reason"]) for image in images for site in image["sites"])
    total = sum(sites.values())

    def share(count: int) -> str:
        return f"{100 * count / total:.1f} %"

    rows = [["verdict", "reason", "sites", "share", ""]]
    for verdict in ("direct", "trampoline", "undecided"):
        reasons = {reason: count for (kind, reason), count in sites.items() if kind == verdict}
        count = sum(reasons.values())
        if count or verdict != "undecided":
            rows.append([verdict, "", f"{count:,}", share(count), ""])
        for reason, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0])):
            rows.append(["", reason, f"{count:,}", share(count), REASONS[reason]])
    return rows


def busiest(images: list[Json]) -> list[list[str]]:
    """The keys with most sites: names, sites, and how many of them go direct."""
    sites: Counter[str] = Counter()
    direct: Counter[str] = Counter()
    for image in images:
        for site in image["sites"]:
            if site["key"] is not None:
                sites[site["key"]] += 1
                direct[site["key"]] += site["verdict"] == "direct"
    first = sorted(sites.items(), key=lambda item: (-item[1], item[0]))[:10]
    return [[name, f"{count:,}", f"{direct[name]:,}"] for name, count in first]


def test_a_kernel_s_tables_say_what_the_json_report_says(vmlinux_612: Path) -> None:
    images = report_document(vmlinux_612)["images"]
    page = read_page(markdown(vmlinux_612))
    verdicts, keys = page.tables

    assert verdicts == expected_verdicts(images)
    assert [row[:3] for row in keys[1:]] == busiest(images)
    functions = {key["name"]: key["func"] or "NULL" for key in images[0]["keys"]}
    assert [row[3] for row in keys[1:]] == [functions[name] for name, *_ in keys[1:]]
    assert page.titles[0].endswith(vmlinux_612.name)
    assert harmless(page)


@pytest.mark.parametrize("fixture", ["broken/duplicate", "broken/overlap", "broken/stale_site", "calls"])
def test_findings_are_told_worst_first(fixture: str, built: Builder) -> None:
    program = built(fixture, "exec")
    (image,) = report_document("--scan", program)["images"]
    text = markdown("--scan", program)
    told = [f"{one['severity']} {one['code']}: {one['message']}" for one in image["findings"]]
    told.sort(key=lambda line: ["error", "warning", "note"].index(line.split()[0]))

    assert [item for item in read_page(text).items if item.split()[0] in ("error", "warning", "note")] == told
    assert ("No findings." in text) == (not told)
    for severity, count in Counter(one["severity"] for one in image["findings"]).items():
        assert f"{count} {severity}" in next(title for title in read_page(text).titles if "Findings" in title)


def test_keys_of_one_name_keep_their_own_rows(tmp_path: Path) -> None:
    """Two of one file, of which each leads elsewhere; together they would have more sites than the third."""
    program = twins(tmp_path)
    (image,) = report_document(program)["images"]
    text = markdown(program)
    _, keys = read_page(text).tables

    assert [(key["name"], key["sites"]) for key in image["keys"]] == [("twin", 2), ("twin", 2), ("other", 3)]
    assert keys[1:] == [["other", "3", "3", "third"], ["twin", "2", "2", "first"], ["twin", "2", "2", "second"]]
    assert "3 keys have sites" in text


@pytest.mark.parametrize("count", [1, 7])
def test_files_that_cannot_be_read_are_told(count: int, built: Builder, tmp_path: Path) -> None:
    """A summary that says nothing of them looks like one of all files."""
    program = built("calls", "exec")
    missing = [tmp_path / f"mis`s*ing*{number}" for number in range(count)]
    outcome = staticcall("report", "--format", "markdown", *missing, program)
    page = read_page(outcome.out)

    assert outcome.code == 3
    assert f"Could not be read: {count} file{'s' * (count > 1)}" in page.titles
    assert [f"staticcall: {item}" for item in page.items[: min(count, 5)]] == outcome.err.splitlines()[:5]
    assert ("and 2 more" in outcome.out) == (count == 7)
    assert page.tables == read_page(markdown(program)).tables
    assert harmless(page)

    alone_text = staticcall("report", "--format", "markdown", missing[0]).out
    alone = read_page(alone_text)
    assert alone.titles == ["Static calls in 0 files", "Could not be read: 1 file"]
    assert "No findings" not in alone_text


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_several_files_are_added_up(jobs: str, built: Builder, made: Objects, tmp_path: Path) -> None:
    archive, none = tmp_path / "lib.a", tmp_path / "none.o"
    subprocess.run(["ar", "rcs", archive, made("calls"), made("tail_calls")], check=True)
    subprocess.run(["as", "-o", none, "-"], input=b"nop\n", check=True)
    files = (archive, built("forms", "exec"), none, built("broken/duplicate", "exec"))
    images = report_document(*files)["images"]
    text = markdown("-j", jobs, *files)
    page = read_page(text)
    verdicts, by_file, keys = page.tables

    assert page.titles[0] == "Static calls in 5 files"
    assert "4 of the 5 files have static calls" in text
    assert verdicts == expected_verdicts(images)
    assert keys[1:] == busiest(images)
    folder = os.path.commonpath([Path(image["path"]).parent for image in images])
    expected = sorted(
        (
            [
                os.path.relpath(image["path"], folder),
                f"{image['summary']['sites']:,}",
                f"{image['summary']['direct']:,}",
                str(sum(one["severity"] != "note" for one in image["findings"])),
            ]
            for image in images
            if image["summary"]["sites"]
        ),
        key=lambda row: -int(row[1].replace(",", "")),
    )
    assert sorted(by_file[1:]) == sorted(expected)
    assert [row[1] for row in by_file[1:]] == [row[1] for row in expected]
    assert "no-static-calls" not in text


def test_a_tree_is_summed_up(made: Objects, tmp_path: Path) -> None:
    for name in ("calls", "tail_calls", "inline_one"):
        shutil.copy(made(name), tmp_path)
    images = report_document(tmp_path)["images"]
    page = read_page(markdown(tmp_path))

    assert page.tables[0] == expected_verdicts(images)
    assert len(page.tables[1]) == 1 + 3


def test_a_name_is_shown_as_it_is_and_means_nothing(tmp_path: Path) -> None:
    for name, path in objects_named(tmp_path).items():
        (image,) = report_document("--scan", path)["images"]
        page = read_page(markdown("--scan", path))
        findings = [f"{one['severity']} {one['code']}: {printable(one['message'])}" for one in image["findings"]]
        assert harmless(page), (name, page)
        assert page.items[: len(findings)] == findings
    every = read_page(markdown("--scan", tmp_path))
    assert harmless(every)
    assert len(every.tables[1]) == 1 + min(len(NAMES), 20)


def test_a_file_name_means_nothing(made: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a|b`c`.o", "**x** <b>.o", "# y\n\n| a |\n|---|\n.o"):
        shutil.copy(made("calls"), name)
        page = read_page(markdown(name))
        assert page.titles[0] == f"Static calls in {printable(name)}"
        assert harmless(page)
        assert len(page.tables) == 2


def worst(number: int) -> str:
    """An image as the renderer's workers hand it on, every text in it as long and as bad as it may come."""
    bad = "`|*_<&" * 400
    line = {
        "path": f"{bad}{number:03}",
        "kind": "REL x86_64",
        "build_id": None,
        "counts": {"sites": 10**9, "direct": 10**8, "crossing": 10**9, "keys": 10**6},
        "reasons": [["trampoline", reason, 10**9] for reason in REASONS],
        "keys": [[f"{other:03}{number:03}{bad}", 10**6, 10**6] for other in range(20)],
        "targets": [bad] * 10,
        "findings": [
            {"error": 10**6, "warning": 10**6, "note": 10**6},
            [
                [severity, "unaccepted-trampoline", "\U0010ffff" + bad]
                for severity in ("error", "note")
                for _ in range(15)
            ],
        ],
        "nothing": False,
        "advice": [bad] * 5,
    }
    return json.dumps(line) + "\n"


@pytest.mark.parametrize("count", [1, 2, 60])
def test_it_is_short_whatever_the_input(count: int) -> None:
    text = "".join(render_document(Policy(), map(worst, range(count))))
    page = read_page(text)

    assert len(text.encode()) < MOST
    assert harmless(page)
    assert max(len(table) for table in page.tables[1:]) <= 21
    assert "more" in text
