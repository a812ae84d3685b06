"""The proof of objects holds for what is right, whoever made it."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from staticcall.abi import static_call as abi
from staticcall.errors import MalformedError, StaticcallError, VerificationError
from staticcall.model.change import Edit, EditKind
from staticcall.verify.objects.annotation import prove_annotation
from staticcall.verify.objects.proof import prove_object
from staticcall.verify.objects.read_back import reads_back
from staticcall.verify.objects.retarget import prove_retarget
from tests.support import objtool
from tests.support.modules import Development
from tests.support.object_model import R_X86_64_64, R_X86_64_NONE, R_X86_64_PLT32, Entry, Model, Site, annotate
from tests.support.objects import CASES, Objects
from tests.support.programs import COMPILERS
from tests.support.tool import staticcall, succeed
from tests.support.toolchain import Compiler

# Of the fixture two_keys, in the order that a table has.
SITES = (
    Site(".text", 0x33, "__SCK__one", tail=True),
    Site(".text", 0x38, "__SCK__two", tail=True),
    Site(".text", 0x20, "__SCK__two", tail=False),
    Site(".text", 0x25, "__SCK__one", tail=False),
    Site(".text", 0x2A, "__SCK__two", tail=False),
)
SIGNATURE = b"signed" + bytes(8) + (6).to_bytes(4, "big") + b"~Module signature appended~\n"

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


# ---- annotated objects ----


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


# ---- retargeted objects ----

CALL, JMP = b"\xe8" + bytes(4), b"\xe9" + bytes(4)


class Retarget:
    """Leads the key `two` of the fixture elsewhere, by hand: slot, trampoline and, if told so, all sites."""

    def __init__(self, data: bytes) -> None:
        self.model = Model(data)

    def to_symbol(self, number: int, *, sites: bool = True) -> "Retarget":
        model = self.model
        self._set(model.tables[model.number(".rela.data")], 8, R_X86_64_64, number, 0)
        self._set(model.tables[model.number(".rela.static_call.text")], 9, R_X86_64_PLT32, number, -4)
        self._code(".static_call.text", 8, JMP)
        if sites:
            self.sites_to(number)
        return self

    def sites_to(self, number: int) -> None:
        for offset, code in ((0x20, CALL), (0x2A, CALL), (0x38, JMP)):
            self._set(self.model.tables[self.model.number(".rela.text")], offset + 1, R_X86_64_PLT32, number, -4)
            self._code(".text", offset, code)

    def to_null(self) -> "Retarget":
        for table, offset in (
            (".rela.data", 8),
            (".rela.static_call.text", 9),
            (".rela.text", 0x21),
            (".rela.text", 0x2B),
            (".rela.text", 0x39),
        ):
            self._clear(table, offset)
        self._code(".static_call.text", 8, abi.RET_TRAMPOLINE)
        self._code(".text", 0x20, abi.NOP5)
        self._code(".text", 0x2A, abi.NOP5)
        self._code(".text", 0x38, abi.RET_SITE)
        return self

    def to_return0(self) -> "Retarget":
        self.to_symbol(self.model.add_undefined(abi.RETURN0))
        for offset in (0x20, 0x2A):
            self._clear(".rela.text", offset + 1)
            self._code(".text", offset, abi.RET0_CS)
        return self

    def _clear(self, table: str, offset: int) -> None:
        entry = self.model.entry(table, offset)
        entry.type, entry.symbol, entry.addend = R_X86_64_NONE, 0, 0

    def _set(self, entries: list[Entry], offset: int, kind: int, symbol: int, addend: int) -> None:
        """Change the entry for a place, or add one."""
        found = [entry for entry in entries if entry.offset == offset]
        entry = found[0] if found else Entry(offset, 0, 0, 0)
        entry.type, entry.symbol, entry.addend = kind, symbol, addend
        if not found:
            entries.append(entry)

    def _code(self, section: str, offset: int, code: bytes) -> None:
        self.model.section(section).content[offset : offset + len(code)] = code

    def dump(self) -> bytes:
        return self.model.dump()


each_input = pytest.mark.parametrize("table", [False, True], ids=["plain", "recorded"])


@pytest.fixture
def data(table: bool, plain: bytes, recorded: bytes) -> bytes:
    """The fixture as it is, or with its table."""
    return recorded if table else plain


def _back(data: bytes, patched: bytes) -> None:
    """The other direction is a retargeting like any other, but that nothing takes symbols away."""
    again = Retarget(patched)
    again.to_symbol(again.model.symbol("second_target"), sites=False)
    again.sites_to(again.model.symbol("__SCT__two"))
    proof = prove_retarget(patched, again.dump())
    assert proof.changed_keys == ("two",)
    assert prove_object(patched, again.dump()) == proof
    assert again.model.dump().count(b"second_target") == data.count(b"second_target")


@each_input
def test_a_key_led_to_another_function_of_the_object(data: bytes) -> None:
    change = Retarget(data)
    patched = change.to_symbol(change.model.symbol("first_target")).dump()
    proof = prove_retarget(data, patched)
    assert proof == (len(patched), {"call": 2, "tail_jmp": 1}, 1, 1, ("two",))
    assert prove_object(data, patched) == proof
    _back(data, patched)


@each_input
def test_a_key_led_to_a_function_that_is_elsewhere(data: bytes) -> None:
    change = Retarget(data)
    patched = change.to_symbol(change.model.add_undefined("elsewhere")).dump()
    assert prove_retarget(data, patched).sites == {"call": 2, "tail_jmp": 1}
    _back(data, patched)


@each_input
def test_sites_may_stay_with_their_trampoline(data: bytes) -> None:
    change = Retarget(data)
    patched = change.to_symbol(change.model.symbol("first_target"), sites=False).dump()
    assert prove_retarget(data, patched)[1:] == ({}, 1, 1, ("two",))


@each_input
def test_a_key_led_nowhere_and_back(data: bytes) -> None:
    patched = Retarget(data).to_null().dump()
    proof = prove_retarget(data, patched)
    assert proof[1:] == ({"nop": 2, "ret": 1}, 1, 1, ("two",))
    _back(data, patched)


@each_input
def test_a_key_that_returns_0_and_back(data: bytes) -> None:
    patched = Retarget(data).to_return0().dump()
    assert prove_retarget(data, patched).sites == {"ret0": 2, "tail_jmp": 1}
    _back(data, patched)


@each_input
def test_relocations_may_be_added_where_none_were(data: bytes) -> None:
    nowhere = Retarget(data).to_null()
    for entries in nowhere.model.tables.values():
        entries[:] = [entry for entry in entries if entry.type != R_X86_64_NONE]
    _back(data, nowhere.dump())


def test_a_section_without_relocations_may_get_some(plain: bytes) -> None:
    nowhere = Retarget(plain).to_null().model
    # What was the table of .data becomes bytes that nobody reads, so both keys are without a target.
    table = nowhere.section(".rela.data")
    del nowhere.tables[nowhere.number(".rela.data")]
    table.type, table.flags, table.link, table.info, table.name = 1, 0, 0, 0, nowhere.section(".data").name
    original = nowhere.dump()
    again = Retarget(original)
    symtab, section = again.model.sections.index(again.model.symtab), nowhere.sections.index(table) - 1
    own = again.model.add_section(
        ".rela.data", type=4, flags=0x40, link=symtab, info=section, alignment=8, entry_size=24
    )
    again.model.tables[own] = []
    again.to_symbol(again.model.symbol("second_target"), sites=False)
    again.sites_to(again.model.symbol("__SCT__two"))
    assert prove_retarget(original, again.dump()).changed_keys == ("two",)
    for what, value in (("info", 1), ("flags", 0), ("link", 0), ("entry_size", 8), ("name", 1)):
        wrong = Model(again.dump())
        setattr(wrong.sections[own], what, value)
        with pytest.raises(VerificationError, match="section 12"):
            prove_retarget(original, wrong.dump())
    wrong = Model(again.dump())
    wrong.tables[own].append(Entry(0, R_X86_64_64, wrong.symbol("both"), 0))
    with pytest.raises(VerificationError, match="one: "):
        prove_retarget(original, wrong.dump())


def test_a_bound_site_goes_straight_to_where_its_key_leads(recorded: bytes) -> None:
    model = Model(recorded)
    entry = model.entry(".rela.text", 0x21)
    entry.symbol = model.symbol("second_target")
    assert prove_retarget(recorded, model.dump())[1:] == ({"call": 1}, 0, 0, ("two",))
    assert prove_retarget(model.dump(), recorded)[1:] == ({"call": 1}, 0, 0, ("two",))


def test_a_signature_may_go_when_that_was_meant(recorded: bytes) -> None:
    change = Retarget(recorded)
    signed, patched = recorded + SIGNATURE, change.to_symbol(change.model.symbol("first_target")).dump()
    assert prove_retarget(signed, patched, stripped_signature=True).changed_keys == ("two",)
    assert prove_object(signed, patched).changed_keys == ("two",)
    assert prove_object(signed, signed).changed_keys == ()
    for original, result, stripped in (
        (signed, patched, False),
        (signed, patched + SIGNATURE, False),
        (signed, patched + SIGNATURE, True),
        (recorded, patched, True),
        (recorded, patched + SIGNATURE, False),
    ):
        with pytest.raises(VerificationError, match="signature"):
            prove_retarget(original, result, stripped_signature=stripped)
    with pytest.raises(MalformedError, match="signature"):
        prove_retarget(
            recorded + SIGNATURE.replace((6).to_bytes(4, "big"), b"\xff" * 4), patched, stripped_signature=True
        )


def _splices(before: bytes, after: bytes) -> list[Edit]:
    """Every byte that differs as an edit of its own, and the end as one."""
    edits = [
        Edit(i, before[i : i + 1], after[i : i + 1], EditKind.LAYOUT, "", None)
        for i in range(min(len(before), len(after)))
        if before[i] != after[i]
    ]
    if len(before) < len(after):
        edits.append(Edit(len(before), b"", after[len(before) :], EditKind.LAYOUT, "", None))
    return edits


def test_edits_must_lead_to_exactly_the_patched_file(recorded: bytes) -> None:
    change = Retarget(recorded)
    patched = change.to_symbol(change.model.add_undefined("elsewhere")).dump()
    edits = _splices(recorded, patched)
    assert prove_retarget(recorded, patched, edits).changed_keys == ("two",)
    wrong = edits[0]._replace(old=bytes([edits[0].old[0] ^ 1]))
    nothing = Edit(1, b"E", b"E", EditKind.LAYOUT, "", None)
    for others in (edits[1:], [wrong, *edits[1:]], edits[::-1], [nothing, *edits], [*edits, edits[-1]]):
        with pytest.raises(VerificationError, match="edit"):
            prove_retarget(recorded, patched, others)


def test_the_same_file_twice_is_a_proof_of_no_change(plain: bytes, recorded: bytes) -> None:
    for data in (plain, recorded):
        assert prove_object(data, data) == (len(data), {}, 0, 0, ())


@pytest.mark.parametrize("options", [["one=elsewhere"], ["one=second_target"], ["one=RET0"], ["one=NULL"]], ids=str)
@each_input
def test_what_the_tool_retargets_is_right(options: list[str], data: bytes, tmp_path: Path) -> None:
    original, output = tmp_path / "original.o", tmp_path / "out.o"
    original.write_bytes(data)
    done = staticcall(
        "patch", original, "-o", output, "--policy", "kernel", "--set", *options, "--force", "null-returns-value"
    )
    assert (done.code, done.err) == (0, "")
    assert prove_object(data, output.read_bytes()).changed_keys == ("one",)
    reads_back(output)


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
