"""The proof of objects holds for what is right, whoever made it."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from staticcall.errors import MalformedError, StaticcallError, VerificationError
from staticcall.verify.objects.annotation import prove_annotation
from staticcall.verify.objects.proof import prove_object
from staticcall.verify.objects.read_back import reads_back
from staticcall.verify.objects.retarget import prove_retarget
from tests.support import objtool
from tests.support.modules import Development
from tests.support.object_model import Model, annotate
from tests.support.objects import CASES, Objects
from tests.support.programs import COMPILERS
from tests.support.tool import succeed
from tests.support.toolchain import Compiler
from tests.support.two_keys import SITES

# Where objtool's own output is not what the rules of the format, or its own, say: it leaves the numbers of displaced
# symbols in LLVM's table and those of sections beyond 16 bits, records sites of groups outside of them, and gives up.
_GIVEN_UP = "no record of the branch"
_DEFECTS = {
    "clang_tables": "(.llvm_addrsig) has another content",
    **dict.fromkeys(("many_sections", "many_nameless"), "symbol"),
    **dict.fromkeys(("inline_one", "inline_two", "combined-bfd", "combined-lld"), "in another group than its site"),
    **dict.fromkeys(("inside", "undecodable", "combined-mold"), _GIVEN_UP),
}
each_compiler = pytest.mark.parametrize("compiler", COMPILERS)
each_case = pytest.mark.parametrize(("name", "compiler"), CASES, ids=["-".join(case) for case in CASES])


@pytest.fixture
def plain(made: Objects) -> bytes:
    """Two keys, their trampolines and five sites, without a table."""
    return made("two_keys").read_bytes()


@pytest.fixture
def recorded(plain: bytes) -> bytes:
    """The same with a table."""
    model = Model(plain)
    annotate(model, SITES)
    return model.dump()


@each_compiler
def test_a_table_made_by_hand_is_right(compiler: Compiler, made: Objects) -> None:
    original = made("two_keys", compiler).read_bytes()
    model = Model(original)
    annotate(model, SITES)
    assert prove_annotation(original, model.dump()) == len(SITES)


def test_a_table_may_have_any_name(plain: bytes) -> None:
    model = Model(plain)
    annotate(model, SITES, "static_call_sites")
    assert prove_annotation(plain, model.dump(), section="static_call_sites") == len(SITES)
    assert prove_object(plain, model.dump()).changed_keys == ()
    with pytest.raises(VerificationError, match="no table of records"):
        prove_annotation(plain, model.dump())


@each_case
def test_what_the_tool_annotates_is_right(name: str, compiler: Compiler, made: Objects, tmp_path: Path) -> None:
    original, output = made(name, compiler), tmp_path / "out.o"
    succeed("annotate", original, "-o", output, "--module")
    before, after = original.read_bytes(), output.read_bytes()
    records = prove_annotation(before, after, module=True)
    assert (records > 0) is (before != after)
    assert prove_object(before, after).sites == {}
    reads_back(output)


@pytest.mark.kernel
@each_case
def test_what_objtool_makes_is_right_but_for_its_known_defects(
    name: str, compiler: Compiler, made: Objects, development: Development, tmp_path: Path
) -> None:
    original, copy = made(name, compiler), tmp_path / "copy.o"
    assert objtool.annotate(development.objtool, original, copy, module=True).code == 0
    if name in _DEFECTS:
        with pytest.raises(VerificationError) as refusal:
            prove_annotation(original.read_bytes(), copy.read_bytes(), module=True)
        assert _DEFECTS[name] in str(refusal.value)
    else:
        records = prove_annotation(original.read_bytes(), copy.read_bytes(), module=True)
        assert (records > 0) is (original.read_bytes() != copy.read_bytes())


@pytest.mark.kernel
@each_compiler
def test_what_objtool_makes_of_the_kernel_is_right(
    compiler: Compiler, kernel_objects: Path, development: Development, tmp_path: Path
) -> None:
    copy, records = tmp_path / "copy.o", 0
    for path in sorted((kernel_objects / compiler).rglob("*.o")):
        assert objtool.annotate(development.objtool, path, copy, module=True).code == 0
        records += prove_annotation(path.read_bytes(), copy.read_bytes(), module=True)
    assert records > 100


def test_the_proof_of_a_table_needs_no_library(plain: bytes, recorded: bytes, tmp_path: Path) -> None:
    """A build proves every object in a process that is as short as the rest of the work."""
    for name, data in (("plain", plain), ("recorded", recorded)):
        (tmp_path / name).write_bytes(data)
    code = (
        "import sys; from pathlib import Path;"
        "from staticcall.verify.objects.annotation import prove_annotation;"
        "prove_annotation(*(Path(name).read_bytes() for name in ('plain', 'recorded')));"
        "print(sorted({'numpy', 'lief', 'capstone', 'elftools', 'json'} & sys.modules.keys()))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
    )
    assert run.stdout == "[]\n"


def test_an_object_without_sites_stays_as_it_is(made: Objects) -> None:
    data = made("no_sites").read_bytes()
    assert prove_annotation(data, data) == 0


def test_an_annotated_object_stays_as_it_is(recorded: bytes) -> None:
    assert prove_annotation(recorded, recorded) == 0


def test_sites_without_a_table_are_no_right_result(plain: bytes) -> None:
    with pytest.raises(VerificationError, match=_GIVEN_UP):
        prove_annotation(plain, plain)


def test_a_module_records_the_trampoline_where_the_key_is_missing(made: Objects, tmp_path: Path) -> None:
    original, output = made("no_key"), tmp_path / "out.o"
    succeed("annotate", original, "-o", output, "--module")
    before, after = original.read_bytes(), output.read_bytes()
    assert prove_annotation(before, after, module=True) > 0
    with pytest.raises(VerificationError, match="is no key"):
        prove_annotation(before, after)


# ---- LIEF ----


def test_lief_reads_something_else_than_we(recorded: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lief  # noqa: PLC0415 - it takes a third of a second

    path = tmp_path / "object.o"
    path.write_bytes(recorded)
    reads_back(path)
    parse = lief.ELF.parse
    for change, seen in ((_other_addend, "relocation"), (_other_value, "symbol"), (_other_byte, "section")):
        model = Model(recorded)
        change(model)
        other = model.dump()
        with monkeypatch.context() as patching:
            patching.setattr(lief.ELF, "parse", lambda _, other=other: parse(other))
            with pytest.raises(VerificationError, match=f"LIEF sees {seen} number"):
                reads_back(path)
        path.write_bytes(other)
        reads_back(path)
        path.write_bytes(recorded)


def _other_addend(model: Model) -> None:
    model.entry(".rela.text", 0x21).addend = -5


def _other_value(model: Model) -> None:
    model.symbols[model.symbol("both")].value += 1


def _other_byte(model: Model) -> None:
    model.section(".text").content[3] ^= 1


# ---- broken objects ----


def test_broken_objects_are_refused_and_nothing_else(plain: bytes, recorded: bytes) -> None:
    chance = random.Random(3)  # noqa: S311 - any numbers will do
    broken = [recorded[:size] for size in range(0, len(recorded), 101)]
    for _ in range(500):
        bytes_ = bytearray(recorded)
        for _ in range(chance.randrange(1, 4)):
            bytes_[chance.randrange(len(bytes_))] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        broken.append(bytes(bytes_))
    for data in broken:
        for before, after in ((data, recorded), (plain, data), (data, plain), (recorded, data)):
            for prove in (prove_object, prove_annotation, prove_retarget):
                try:
                    prove(before, after)
                except StaticcallError:
                    continue


@pytest.mark.parametrize("data", [b"", b"\x7fELF", bytes(64), b"!<arch>\n" + bytes(100)])
def test_what_is_no_object_is_refused(data: bytes, plain: bytes) -> None:
    with pytest.raises(MalformedError):
        prove_object(data, plain)
    with pytest.raises(VerificationError):
        prove_object(plain, data)
