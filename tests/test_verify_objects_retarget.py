"""The proof of retargeted objects holds for what is right, whoever made it."""

from pathlib import Path

import pytest

from staticcall.abi import static_call as abi
from staticcall.errors import MalformedError, VerificationError
from staticcall.model.change import Edit, EditKind
from staticcall.verify.objects.annotation import prove_annotation
from staticcall.verify.objects.proof import prove_object
from staticcall.verify.objects.read_back import reads_back
from staticcall.verify.objects.retarget import prove_retarget
from tests.support.object_model import R_X86_64_64, R_X86_64_NONE, Entry, Model, Site, annotate
from tests.support.objects import Objects
from tests.support.tool import staticcall
from tests.support.two_keys import SIGNATURE, SITES, Retarget

each_input = pytest.mark.parametrize("table", [False, True], ids=["plain", "recorded"])


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
    assert proof == (len(patched), {"call": 2, "tail_jmp": 1}, 1, 1, ("two",), 0, ())
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
    assert prove_retarget(data, patched)[1:] == ({}, 1, 1, ("two",), 0, ())


@each_input
def test_a_key_led_nowhere_and_back(data: bytes) -> None:
    patched = Retarget(data).to_null().dump()
    proof = prove_retarget(data, patched)
    assert proof[1:] == ({"nop": 2, "ret": 1}, 1, 1, ("two",), 0, ())
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
    assert prove_retarget(recorded, model.dump())[1:] == ({"call": 1}, 0, 0, ("two",), 0, ())
    assert prove_retarget(model.dump(), recorded)[1:] == ({"call": 1}, 0, 0, ("two",), 0, ())


def _conditional(plain: bytes) -> bytes:
    """The fixture with `je __SCT__one` in place of both of its jumps, and its table."""
    model = Model(plain)
    model.section(".text").content[0x33:0x3D] = b"\x0f\x84" + bytes(4) + b"\x90" * 4
    entries = model.entries(".rela.text")
    entries.remove(model.entry(".rela.text", 0x39))
    model.entry(".rela.text", 0x34).offset = 0x35
    jump = Site(".text", 0x33, "__SCK__one", tail=True)
    original = model.dump()
    annotate(model, [jump, *SITES[2:]])
    assert prove_annotation(original, model.dump()) == 4
    return model.dump()


@pytest.mark.parametrize("target", ["second_target", abi.PLAIN_RETURN, abi.RETURN_THUNK])
def test_a_conditional_jump_keeps_its_condition(target: str, plain: bytes) -> None:
    data = _conditional(plain)
    model = Model(data)
    null = target != "second_target"
    number = model.add_undefined(target) if null else model.symbol(target)
    slot, home, site = (
        model.entry(".rela.data", 0),
        model.entry(".rela.static_call.text", 1),
        model.entry(".rela.text", 0x35),
    )
    slot.symbol = home.symbol = site.symbol = number
    if null:
        slot.type = slot.symbol = 0
    patched = model.dump()
    assert prove_retarget(data, patched)[1:] == ({"jcc": 1}, 1, 1, ("one",), 0, ())
    model.section(".text").content[0x34] = 0x85
    with pytest.raises(VerificationError, match="became jcc"):
        prove_retarget(data, model.dump())


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
        assert prove_object(data, data) == (len(data), {}, 0, 0, (), 0, ())


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
