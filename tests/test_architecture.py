"""Who may import whom. The rooms of the pipeline know the shared values, and not each other."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import staticcall

ROOT = Path(staticcall.__file__).parent
SHARED = {"model", "errors", "abi"}
ROOMS = {"read", "locate", "classify", "plan", "write", "verify", "integrity", "report"}
LIBRARIES = {
    "click": {"cli"},
    "capstone": {"locate", "verify"},
    "distributed": {"pipeline"},
    "elftools": {"verify"},
    "jinja2": {"report"},
    "lief": {"verify"},
    "lzma_mt": {"read"},
    "lz4": {"read", "write", "verify"},
    "lzallright": {"read", "write", "verify"},
    "numpy": {"locate", "read"},  # read: line programs, whose millions of opcodes are decoded all at once
    "rich": {"cli", "report"},
    "zstandard": {"read", "write", "verify"},
}
MODULES = sorted(ROOT.rglob("*.py"))


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0]


def imported(path: Path) -> Iterator[str]:
    """Every module named by an import statement, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide who is meant"
            yield node.module or ""


def rooms_imported(path: Path) -> set[str]:
    names = [name.split(".") for name in imported(path)]
    return {parts[1] for parts in names if parts[0] == "staticcall" and len(parts) > 1}


def module_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=module_id)
def test_a_module_imports_only_what_its_place_allows(path: Path) -> None:
    room = room_of(path)
    allowed = {
        "__init__": {"api"},  # for type checkers, and for who asks for a name
        "__main__": {"cli"},
        "cli": {"cli", "pipeline", "errors", "model"},
        "api": {"api", "pipeline", "errors", "model"},
        "pipeline": {"pipeline", *ROOMS, *SHARED},
        **{name: {name, *SHARED} for name in ROOMS},
        **dict.fromkeys(SHARED, SHARED),
    }[room]

    assert rooms_imported(path) <= allowed


@pytest.mark.parametrize("path", MODULES, ids=module_id)
def test_a_library_is_imported_only_where_it_belongs(path: Path) -> None:
    foreign = {name.split(".")[0] for name in imported(path)} - {"staticcall", *sys.stdlib_module_names}

    assert foreign <= LIBRARIES.keys()
    assert all(room_of(path) in LIBRARIES[name] for name in foreign)


def test_the_verifier_shares_neither_parser_nor_decoder_with_the_writer() -> None:
    shared = {name for path in (ROOT / "verify").rglob("*.py") for name in imported(path)}

    assert not shared & {"staticcall.abi.x86", "staticcall.model.image", "staticcall.plan", "staticcall.read"}


def test_opcodes_are_spelt_out_in_one_place_only() -> None:
    # A linker's option names a prefix; the verifier has a table of its own on purpose.
    bare = re.compile(r"(?<!prefix-)0x(e8|e9|eb|c3|cc|0f|2e)\b", re.IGNORECASE)
    places = {
        module_id(path)
        for path in MODULES
        for line in path.read_text().splitlines()
        if bare.search(line.split("#")[0]) and not line.lstrip().startswith(('"', "#"))
    }

    assert places <= {"abi/x86.py", "abi/elf64.py", "abi/dwarf.py", "verify/decode.py"}


@pytest.mark.parametrize("path", MODULES, ids=module_id)
def test_no_module_is_two_rooms_in_one(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


def test_a_plain_report_imports_no_heavy_library(tmp_path: Path) -> None:
    """Start-up is most of a small report's time; each of these costs more than the report itself."""
    import subprocess  # noqa: PLC0415 - one test needs it

    program = tmp_path / "empty"
    program.write_bytes(b"")
    code = (
        "import sys; from staticcall.cli.entry import run; run(['report', sys.argv[1]]);"
        "print(sorted({'numpy', 'lief', 'capstone', 'elftools', 'json', 'rich'} & sys.modules.keys()))"
    )
    run = subprocess.run([sys.executable, "-c", code, program], capture_output=True, text=True, check=True)

    assert run.stdout.splitlines()[-1] == "[]"
