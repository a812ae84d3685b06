"""The HTML report as a file: what it holds, how a hostile name is told, and how many files become one document."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.support import objects, toolchain
from tests.support.programs import Builder
from tests.support.sites import BND_CALL, MOV, SITES, Placed
from tests.support.tool import report, staticcall, succeed

# Texts that a browser would obey wherever one of them got into a document as it is, each as long as a name.
HOSTILE = {b"alpha": b"<b>\"'", b"beta": b"</p>", b"hook": b"&lt;", b"zero": b"`<>\x1b"}


class Reader(HTMLParser):
    """The elements of a document and its texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.inside: dict[str, str] = {}
        self._last = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._last = tag

    def handle_endtag(self, tag: str) -> None:  # noqa: ARG002 - the parser passes it by position
        self._last = ""

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        self.inside[self._last] = self.inside.get(self._last, "") + data


@pytest.fixture(scope="module")
def document(built: Builder) -> Reader:
    return Reader(succeed("report", "--format", "html", built("calls", "exec")))


def test_a_document_has_nothing_to_fetch(document: Reader) -> None:
    attributes = [(tag, name) for tag, attrs in document.tags for name in attrs]
    links = [attrs["href"] or "" for tag, attrs in document.tags if tag == "a"]

    assert not {name for _, name in attributes} & {"src", "srcset", "action", "formaction", "data", "poster"}
    assert not [tag for tag, _ in document.tags if tag in ("link", "img", "iframe", "object", "base", "form")]
    assert links
    assert all(link.startswith("#") for link in links)
    assert not re.search(r"url\(|@import|https?:", document.inside["style"])


def test_the_policy_of_a_document_allows_its_own_style_and_script_and_nothing_else(document: Reader) -> None:
    (policy,) = [
        attrs["content"] or "" for _, attrs in document.tags if attrs.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))

    def allowed(text: str) -> str:
        return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"

    assert rules == {
        "default-src": "'none'",
        "style-src": allowed(document.inside["style"]),
        "script-src": allowed(document.inside["script"]),
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert not [name for _, attrs in document.tags for name in attrs if name.startswith("on") or name == "style"]


def test_every_link_and_label_of_a_document_leads_to_one_place(document: Reader) -> None:
    names = [attrs["id"] for _, attrs in document.tags if "id" in attrs]
    wanted = {attrs["href"][1:] for tag, attrs in document.tags if tag == "a" and attrs["href"]}
    wanted |= {attrs["aria-labelledby"] or "" for _, attrs in document.tags if "aria-labelledby" in attrs}

    assert len(names) == len(set(names))
    assert wanted <= set(names)


def test_hostile_names_are_texts_and_nothing_else(built: Builder, tmp_path: Path) -> None:
    plain = built("calls", "exec")
    content = plain.read_bytes()
    for name, other in HOSTILE.items():
        assert len(name) == len(other)
        content = content.replace(b"__SCK__" + name, b"__SCK__" + other).replace(b"__SCT__" + name, b"__SCT__" + other)
    folder = tmp_path / "<script>alert(1)<"
    folder.mkdir()
    hostile = folder / "script>\"'><img src=x onerror=alert(1)>\n{{ 7 * 7 }}"
    hostile.write_bytes(content)
    alike = tmp_path / "plain"
    shutil.copy(plain, alike)

    text = succeed("report", "--format", "html", hostile)
    document, harmless = Reader(text), Reader(succeed("report", "--format", "html", alike))
    cells = {found.strip() for found in document.texts}

    assert [tag for tag, _ in document.tags] == [tag for tag, _ in harmless.tags]
    assert [sorted(attrs) for _, attrs in document.tags] == [sorted(attrs) for _, attrs in harmless.tags]
    assert {"<b>\"'", "</p>", "&lt;", "`<>\\x1b"} <= cells
    assert any("onerror=alert(1)>\\n{{ 7 * 7 }}" in found for found in document.texts)
    assert "\x1b" not in text


def _by_objdump(program: Path, address: int) -> str:
    """An instruction as objdump has it, with names instead of the addresses beside them."""
    text = re.sub(r"-?0x[0-9a-f]+\(%rip\) # [0-9a-f]+ <(\S+)>", r"\1(%rip)", toolchain.disassemble(program, address))
    return re.sub(r"\b[0-9a-f]+ <(\S+)>", r"\1", text)


@pytest.mark.parametrize("fixture", ["calls", "forms"])
def test_instructions_are_told_as_objdump_tells_them(fixture: str, built: Builder) -> None:
    program = built(fixture, "exec")
    text = succeed("report", "--format", "html", "--fail-on", "never", program)
    told = dict(re.findall(r'<tr><th scope="row">(0x\w+)<td>.*?<td>.*?<td><code>.*?</code><td>(.*?)<td', text))
    names = toolchain.symbols(program)

    def check(site: Placed) -> None:
        address = names[site.function] + site.lead
        if site.shape not in (MOV, BND_CALL):
            assert told[f"{address:#x}"].replace("&lt;", "<") == _by_objdump(program, address)

    for site in SITES[fixture]:
        check(site)
    assert len(told) == report("--fail-on", "never", program)["summary"]["sites"]


_EDIT = re.compile(
    r'<tr><th scope="row">(?P<where>.*?)<td>.*?<td>(?P<key>.*?)<td>(?P<kind>.*?)'
    r"<td><del><code>(?P<old>.*?)</code>(?:<br>(?P<old_text>.*?))?</del>"
    r"<td><ins><code>(?P<new>.*?)</code>(?:<br>(?P<new_text>.*?))?</ins>"
)


def test_before_and_after_are_the_edits_of_the_undo_file_as_objdump_reads_both_files(
    built: Builder, tmp_path: Path
) -> None:
    program, patched, undo = built("calls", "exec"), tmp_path / "patched", tmp_path / "undo.json"
    succeed("patch", program, "--set", "alpha=alpha_fast", "--bind", "-o", patched, "--edits", undo)
    edits = json.loads(undo.read_text("utf-8"))["edits"]
    names = {f"{address:#x}": name for name, address in toolchain.symbols(program).items()}

    text = succeed("report", "--format", "html", "--edits", undo, "--fail-on", "never", patched)
    shown = [found.groupdict() for found in _EDIT.finditer(text)]

    def said(kind: str, address: int, code: str, path: Path) -> str:
        if kind != "key":
            return _by_objdump(path, address)
        target = int.from_bytes(bytes.fromhex(code), "little")
        return f"leads to {names[f'{target:#x}'] if target else 'NULL'}"

    assert {edit["kind"] for edit in edits} == {"site", "trampoline", "key"}
    assert len(shown) == len(edits)
    for row, edit in zip(shown, edits, strict=True):
        kind, address = edit["kind"], int(edit["address"], 16)
        assert (row["where"], row["key"], row["kind"]) == (edit["address"], edit["key"], kind)
        assert (row["old"], row["new"]) == tuple(bytes.fromhex(edit[state]).hex(" ") for state in ("old", "new"))
        assert row["old_text"] == said(kind, address, edit["old"], program)
        assert row["new_text"] == said(kind, address, edit["new"], patched)


def test_relocations_before_and_after_are_told_as_objdump_tells_them(tmp_path: Path) -> None:
    source = Path(__file__).parents[1] / "fixtures" / "demo" / "demo.c"
    before, after, undo = tmp_path / "demo.o", tmp_path / "patched.o", tmp_path / "undo.json"
    subprocess.run(["gcc", "-std=c11", "-O2", "-fno-pie", "-c", "-o", before, source], check=True)
    succeed("patch", before, "--set", "checksum=checksum_fast", "-o", after, "--edits", undo)
    edits = [e for e in json.loads(undo.read_text("utf-8"))["edits"] if e["kind"] == "relocation"]

    def listed(path: Path) -> set[str]:
        run = subprocess.run(["objdump", "-r", path], capture_output=True, text=True, check=True)
        found = re.findall(r"^[0-9a-f]{16} (R_\S+) +(\S+?)(?:([-+]0x)0*([0-9a-f]+))?$", run.stdout, re.MULTILINE)
        return {f"{kind} {symbol}{sign}{addend}" for kind, symbol, sign, addend in found}

    text = succeed("report", "--format", "html", "--edits", undo, "--fail-on", "never", after)
    shown = [found.groupdict() for found in _EDIT.finditer(text) if found["kind"] == "relocation"]

    assert len(shown) == len(edits) > 1
    assert {row["old_text"] for row in shown} <= listed(before)
    assert {row["new_text"] for row in shown} <= listed(after) | {"no relocation"}
    assert any("checksum_plain" in row["old_text"] for row in shown)
    assert any("checksum_fast" in row["new_text"] for row in shown)


def test_sites_are_told_with_their_source_lines(tmp_path: Path) -> None:
    source, program = Path(__file__).parents[1] / "fixtures" / "demo" / "demo.c", tmp_path / "demo"
    subprocess.run(["gcc", "-std=c11", "-O2", "-g", "-fno-pie", "-no-pie", "-o", program, source], check=True)
    addresses = sorted(site["address"] for site in report(program)["sites"])
    lines = subprocess.run(["addr2line", "-e", program, *addresses], capture_output=True, text=True, check=True)
    expected = [re.sub(r" \(.*", "", line) for line in lines.stdout.splitlines()]

    text = succeed("report", "--format", "html", program)

    assert len(expected) == len(addresses) > 1
    assert re.findall(r'<td(?: class="crossing">yes|>no)<td>(\S+:\d+)', text) == expected


def test_a_file_given_twice_gives_two_parts_with_links_of_their_own(built: Builder) -> None:
    program = built("calls", "exec")

    document = Reader(succeed("report", "--format", "html", program, program))
    names = [attrs["id"] for _, attrs in document.tags if "id" in attrs]

    assert len(names) == len(set(names))
    assert sum(attrs.get("class") == "image" for _, attrs in document.tags) == 2


def test_many_files_are_one_document_whatever_the_number_of_workers(built: Builder, tmp_path: Path) -> None:
    empty = tmp_path / "no calls"
    source = tmp_path / "empty.c"
    source.write_text("int main(void) { return 0; }\n")
    subprocess.run(["gcc", "-o", empty, source], check=True)
    files = (built("calls", "exec"), empty, built("library", "shared"), built("forms", "pie"))

    alone = staticcall("report", "--format", "html", "--fail-on", "never", *files)
    together = staticcall("report", "--format", "html", "--fail-on", "never", "-j", "3", *files)
    document = Reader(alone.out)
    images = [attrs for tag, attrs in document.tags if tag == "details" and attrs.get("class") == "image"]

    assert (alone.code, alone.err) == (0, "")
    assert alone == together
    assert len(images) == 3
    assert "no calls" in {text.rpartition("/")[2] for text in document.texts}


def test_an_archive_is_one_document_with_a_part_for_every_object_that_calls(
    made: objects.Objects, tmp_path: Path
) -> None:
    archive, empty = tmp_path / "calls.a", tmp_path / "empty.o"
    subprocess.run(["gcc", "-c", "-x", "c", "-o", empty, "-"], input="int nothing;", text=True, check=True)
    subprocess.run(["ar", "rcs", archive, made("calls"), empty, made("calls-size")], check=True)

    document = Reader(succeed("report", "--format", "html", "--scan", "--fail-on", "never", archive))
    files = {text.rpartition("/")[2] for text in document.texts if text.startswith("calls.a(")}

    assert sum(attrs.get("class") == "image" for _, attrs in document.tags) == 2
    assert files == {f"calls.a({made(name).name})" for name in ("calls", "calls-size")} | {"calls.a(empty.o)"}
