"""The report as SARIF: accepted by the official schema, and what it says is what the JSON report says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

import jsonschema
import pytest

from staticcall.model.findings import FINDINGS
from staticcall.model.reasons import DIRECT_REASONS, REASONS
from staticcall.report import sarif as renderer
from tests.support.containers import through
from tests.support.hostile import object_named, objects_named
from tests.support.objects import Objects
from tests.support.programs import Builder
from tests.support.sarif import notes_on_sites, parse_sarif, sarif
from tests.support.tool import Json, report, report_document, staticcall, succeed

DEMO = Path(__file__).parents[1] / "fixtures" / "demo" / "demo.c"
# Every site of a program without prefixes stays with its trampoline.
NONE_DIRECT = ("--policy", "torvalds")


def build(folder: Path, *, before: str = "", relative: bool = False) -> Path:
    """The demo, `before` in front of its functions; compiled in the folder of its source, or in the one above."""
    sources = folder / "src"
    sources.mkdir(parents=True)
    source = DEMO.read_text().replace('"../user/', f'"{DEMO.parents[1]}/user/')
    marker = "enum { WIDTH"
    assert marker in source
    (sources / "demo.c").write_text(source.replace(marker, f"{before}\n{marker}"))
    options = ("-std=c11", "-O2", "-g", "-fno-pie", "-no-pie")
    where, name = (sources, "demo.c") if relative else (folder, sources / "demo.c")
    subprocess.run(["gcc", *options, "-o", folder / "demo", name], cwd=where, check=True)
    return folder / "demo"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("sarif") / "demo")


def expected_results(image: Json) -> Counter[tuple[str, str]]:
    """The rule and the level of each result, by the JSON report."""
    findings = Counter((one["code"], one["severity"]) for one in image["findings"])
    return findings + Counter((site["reason"], "note") for site in image["sites"] if site["verdict"] != "direct")


def results(run: Json) -> Counter[tuple[str, str]]:
    return Counter((one["ruleId"], one["level"]) for one in run["results"])


@pytest.mark.parametrize("fixture", ["broken/duplicate", "broken/overlap", "broken/stale_site", "broken/unrecorded"])
@pytest.mark.parametrize("policy", ["lutomirski", "torvalds", "kernel"])
def test_there_is_a_result_for_each_finding_and_each_site_that_is_not_direct(
    fixture: str, policy: str, built: Builder
) -> None:
    program = built(fixture, "exec")
    options = ("--scan", "--policy", policy, program)
    image, run = report(*options), sarif(*options)

    assert results(run) == expected_results(image)
    summary = image["summary"]
    assert run["properties"]["policy"] == {"name": policy, "line": 64}
    assert run["properties"]["summary"] == {name: summary[name] for name in run["properties"]["summary"]}
    assert run["artifacts"][0]["properties"]["reasons"] == summary["reasons"]


def test_the_schema_refuses_what_is_wrong(demo: Path) -> None:
    """A control: a level, a region and a member that SARIF does not have."""
    text = staticcall("report", "--format", "sarif", *NONE_DIRECT, demo).out
    parse_sarif(text)
    for good, bad in (('"level":"note"', '"level":"bad"'), ('"startLine":', '"startLine":-'), ('"kind":', '"kinds":')):
        assert good in text
        with pytest.raises(jsonschema.ValidationError):
            parse_sarif(text.replace(good, bad))


def test_the_worst_comes_first_whatever_file_it_is_in(built: Builder) -> None:
    """Findings by severity, and then notes on sites: what is left out where there is too much is the end."""
    programs = [built(f"broken/{name}", "exec") for name in ("unrecorded", "duplicate", "stale_site")]
    run = sarif("--scan", *NONE_DIRECT, *programs)
    levels = ["error", "warning", "note"]
    kinds = [3 if "verdict" in one["properties"] else levels.index(one["level"]) for one in run["results"]]

    assert kinds == sorted(kinds)
    assert set(kinds) >= {0, 1, 3}


def test_there_is_a_rule_for_every_reason_and_every_finding(demo: Path) -> None:
    rules = sarif(demo)["tool"]["driver"]["rules"]

    assert [rule["id"] for rule in rules] == [*REASONS, *FINDINGS]
    assert len({rule["name"] for rule in rules}) == len(rules)
    for rule in rules:
        level = rule["defaultConfiguration"]["level"]
        if rule["id"] in REASONS:
            assert level == ("none" if rule["id"] in DIRECT_REASONS else "note")
        else:
            assert level == FINDINGS[rule["id"]].severities[0]
        for text in (rule["shortDescription"]["text"], rule["fullDescription"]["text"], rule["help"]["text"]):
            assert text[0].isupper()
            assert text.endswith(".")


def test_a_site_is_where_binutils_finds_its_source_line(demo: Path) -> None:
    run = sarif(*NONE_DIRECT, demo)
    image = report(*NONE_DIRECT, demo)
    addresses = [site["address"] for site in image["sites"]]
    printed = subprocess.run(
        ["addr2line", "-e", demo, *addresses], capture_output=True, text=True, check=True
    ).stdout.splitlines()

    found = {}
    for one in notes_on_sites(run):
        (place,) = one["locations"]
        path = urlsplit(place["physicalLocation"]["artifactLocation"]["uri"])
        assert path.scheme == "file"  # it lies outside of the folder that the tests run in
        found[one["properties"]["address"]] = f"{path.path}:{place['physicalLocation']['region']['startLine']}"
    assert found == {address: line.partition(" (")[0] for address, line in zip(addresses, printed, strict=True)}


def test_sources_below_the_working_folder_are_relative(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(demo.parents[1])
    run = sarif(*NONE_DIRECT, "demo/demo")
    places = [one["locations"][0]["physicalLocation"]["artifactLocation"] for one in notes_on_sites(run)]

    assert places
    assert all(place == {"uri": "demo/src/demo.c", "uriBaseId": "SRCROOT"} for place in places)
    assert run["artifacts"][0]["location"] == {"uri": "demo/demo", "uriBaseId": "PWD"}
    assert {place["uriBaseId"] for place in places} | {"PWD"} == run["originalUriBaseIds"].keys()


def test_sources_that_the_compiler_had_by_a_relative_name_keep_it(tmp_path: Path) -> None:
    run = sarif(*NONE_DIRECT, build(tmp_path / "built", relative=True))
    places = [one["locations"][0]["physicalLocation"]["artifactLocation"] for one in notes_on_sites(run)]

    assert places
    assert all(place == {"uri": "demo.c", "uriBaseId": "SRCROOT"} for place in places)


def test_the_instruction_is_in_the_binary_where_the_region_says(demo: Path, tmp_path: Path) -> None:
    stripped = tmp_path / "stripped"
    subprocess.run(["strip", "--strip-debug", "-o", stripped, demo], check=True)
    for program, member in ((demo, "relatedLocations"), (stripped, "locations")):
        by_address = {site["address"]: site for site in report(*NONE_DIRECT, program)["sites"]}
        notes = notes_on_sites(sarif(*NONE_DIRECT, program))
        assert notes
        for one in notes:
            site = by_address[one["properties"]["address"]]
            place = one[member][0]["physicalLocation"]
            region = place["region"]
            with program.open("rb") as file:
                file.seek(region["byteOffset"])
                assert file.read(region["byteLength"]).hex() == site["bytes"]
            assert place["address"]["absoluteAddress"] == int(site["address"], 16)
            assert place["address"]["fullyQualifiedName"] == site["function"]
            name = site["function"].partition("+")[0]
            assert one["locations"][0]["logicalLocations"] == [{"name": name, "kind": "function"}]


def test_a_result_is_known_again_in_another_build(demo: Path, tmp_path: Path) -> None:
    # Cold functions come first in a program.
    other = build(tmp_path / "again", before="__attribute__((used, cold)) static int pad(int x) { return x * 3; }")

    def known(program: Path) -> tuple[list[Json], list[str]]:
        notes = notes_on_sites(sarif(*NONE_DIRECT, program))
        return [one["partialFingerprints"] for one in notes], [one["properties"]["address"] for one in notes]

    (before, places_before), (after, places_after) = known(demo), known(other)
    assert before == after
    assert len({json.dumps(one) for one in before}) == len(before)
    assert places_before != places_after


def test_a_site_that_becomes_direct_leaves_the_others_their_fingerprints(built: Builder) -> None:
    """A site is counted among all of its function and key, direct or not."""
    program = built("forms", "exec")
    everything = {
        one["properties"]["address"]: one["partialFingerprints"] for one in notes_on_sites(sarif(*NONE_DIRECT, program))
    }
    image = report("--policy", "lutomirski", program)
    fewer = notes_on_sites(sarif("--policy", "lutomirski", program))

    assert len(fewer) < len(image["sites"])
    numbers = Counter(json.dumps(one["partialFingerprints"]) for one in fewer)
    assert set(numbers.values()) <= {1}
    assert len({json.dumps(one) for one in everything.values()}) == len(everything)


@pytest.mark.parametrize("name", [b"a b%20#?&;[x]{y}.o", b"c:drive.o", b"\xc3\xbc\xff\n.o", b'"<script>.o'])
def test_a_file_name_is_in_the_uri_byte_for_byte(
    name: bytes, made: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(os.fsdecode(name))
    shutil.copy(made("calls"), path)
    for given in (path, tmp_path / path, Path("..") / tmp_path.name / path):
        run = sarif(given)
        (artifact,) = run["artifacts"]
        uri = artifact["location"]["uri"]
        assert uri.isascii()
        assert urlsplit(uri).scheme == ""
        assert path.samefile(os.fsdecode(unquote_to_bytes(uri)))
        assert run["results"]
        for one in run["results"]:
            assert one["locations"][0]["physicalLocation"]["artifactLocation"] == artifact["location"]


def test_many_files_are_one_run_whatever_the_jobs(made: Objects, demo: Path, tmp_path: Path) -> None:
    archive = tmp_path / "lib.a"
    subprocess.run(["ar", "rcs", archive, made("calls"), made("tail_calls")], check=True)
    files = (archive, demo, made("inline_one"))
    first, second = sarif(*files), sarif("-j", "2", *files)
    images = report_document(*files)["images"]

    assert first == second
    assert len(first["artifacts"]) == len(images) == 4
    assert results(first) == sum((expected_results(image) for image in images), Counter())
    names = [Path(unquote_to_bytes(one["location"]["uri"]).decode()).name for one in first["artifacts"]]
    assert names == [Path(image["path"]).name for image in images]
    for image, artifact in zip(images, first["artifacts"], strict=True):
        assert artifact["properties"]["sites"] == image["summary"]["sites"]


def test_of_a_tree_it_is_not_told_that_files_have_no_static_calls(made: Objects, tmp_path: Path) -> None:
    for name in ("a", "b"):
        subprocess.run(["as", "-o", tmp_path / f"{name}.o", "-"], input=b"nop\n", check=True)
    shutil.copy(made("tail_calls"), tmp_path / "c.o")
    run = sarif(tmp_path)

    assert len(run["artifacts"]) == 3
    assert "no-static-calls" not in {one["ruleId"] for one in run["results"]}
    assert run["results"]
    assert results(sarif(tmp_path / "a.o")) == {("no-static-calls", "note"): 1}


def test_a_file_that_fails_is_a_notification(demo: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    outcome = staticcall("report", "--format", "sarif", missing, demo)
    (invocation,) = parse_sarif(outcome.out)["invocations"]

    assert outcome.code == 3
    assert not invocation["executionSuccessful"]
    (notification,) = invocation["toolExecutionNotifications"]
    assert notification["level"] == "error"
    assert f"staticcall: {notification['message']['text']}\n" == outcome.err
    (good,) = sarif(demo)["invocations"]
    assert good == {"executionSuccessful": True, "toolExecutionNotifications": []}


@pytest.mark.parametrize("most", [0, 1, 3, 5, 1000])
def test_more_results_than_services_take_are_left_out_and_counted(
    most: int, built: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = built("broken/duplicate", "exec")
    every = sarif(*NONE_DIRECT, program)
    monkeypatch.setattr(renderer, "MOST_RESULTS", most)
    run = sarif(*NONE_DIRECT, program)

    assert run["results"] == every["results"][:most]
    left_out = len(every["results"]) - len(run["results"])
    told = [one["message"]["text"] for one in run["invocations"][0]["toolExecutionNotifications"]]
    assert [text.split()[0] for text in told] == ([str(left_out)] if left_out else [])


def test_the_hash_is_the_file_s(demo: Path) -> None:
    (artifact,) = sarif("--hash", demo)["artifacts"]

    assert artifact["hashes"] == {"sha-256": report("--hash", demo)["sha256"]}
    assert artifact["length"] == demo.stat().st_size


def test_a_compressed_file_has_no_offsets_of_what_is_inside(made: Objects, tmp_path: Path) -> None:
    packed = tmp_path / "tail.o.gz"
    with packed.open("wb") as file:
        subprocess.run(["gzip", "-c", made("tail_calls")], stdout=file, check=True)
    run = sarif(*NONE_DIRECT, packed)

    assert run["artifacts"][0]["properties"]["container"] == ["gzip"]
    assert "length" not in run["artifacts"][0]
    assert notes_on_sites(run)
    assert all("region" not in one["locations"][0]["physicalLocation"] for one in notes_on_sites(run))


def test_a_member_is_never_where_its_name_would_lead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "outer" / "inner"
    (inner / "a)").mkdir(parents=True)
    object_named(tmp_path / "main.c", "any")
    monkeypatch.chdir(tmp_path)
    for name in ("../../main.c", "a)/../../../main.c"):
        packed = through(("cpio", "--quiet", "-o", "-H", "newc"), name.encode(), inner)
        Path("packed.cpio").write_bytes(packed)
        run = sarif("packed.cpio")
        (artifact,) = run["artifacts"]
        uri = unquote_to_bytes(artifact["location"]["uri"]).decode()

        assert uri == f"packed.cpio({name.replace('../', '')})"
        assert run["results"]
        assert {one["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for one in run["results"]} == {uri}


def test_a_place_without_a_function_is_its_section(tmp_path: Path) -> None:
    notes = notes_on_sites(sarif("--scan", object_named(tmp_path / "any.o", "any")))

    assert notes
    assert all(one["locations"][0]["logicalLocations"] == [{"name": ".text", "kind": "section"}] for one in notes)


def test_a_kernel_s_sites_are_in_its_sources(vmlinux_612: Path) -> None:
    options = ("--key", "x86_pmu_swap_task_ctx", *NONE_DIRECT, vmlinux_612)
    notes = notes_on_sites(sarif(*options))

    assert len(notes) == report(*options)["summary"]["trampoline"] > 0
    for one in notes:
        (place,) = one["locations"]
        assert unquote_to_bytes(urlsplit(one["analysisTarget"]["uri"]).path) == os.fsencode(vmlinux_612)
        assert place["physicalLocation"]["artifactLocation"] == {
            "uri": "arch/x86/events/core.c",
            "uriBaseId": "SRCROOT",
        }
        # A double cannot hold it.
        related = one["relatedLocations"][0]["physicalLocation"]
        assert "absoluteAddress" not in related["address"]
        assert int(one["properties"]["address"], 16) > 1 << 63


def test_a_name_is_text_whatever_it_holds(tmp_path: Path) -> None:
    paths = objects_named(tmp_path)
    images = report_document(*paths.values())["images"]
    run = sarif(*paths.values())

    assert results(run) == sum((expected_results(image) for image in images), Counter())
    messages = {one["message"]["text"] for one in run["results"]}
    told = {text[0].lower() + text[1:-1] for text in messages}
    assert {finding["message"] for image in images for finding in image["findings"]} <= told
    # What would be a link (3.11.6) is none; the name is whole elsewhere.
    assert "](" not in "".join(messages)
    assert {one["properties"]["key"] for one in notes_on_sites(run)} == paths.keys()


def test_the_log_goes_into_a_file(demo: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.sarif"
    succeed("report", "--output", log, demo)

    assert parse_sarif(log.read_text("utf-8")) == sarif(demo)
