"""The proof of retargeted objects refuses whatever is not quite right: each test spoils one thing of a right result."""

import re

import pytest

from staticcall.abi import static_call as abi
from staticcall.errors import VerificationError
from staticcall.verify.objects.annotation import prove_annotation
from staticcall.verify.objects.proof import prove_object
from staticcall.verify.objects.retarget import prove_retarget
from tests.support.object_model import R_X86_64_64, R_X86_64_NONE, R_X86_64_PC32, TABLE, Entry, Model, annotate
from tests.support.objects import Objects
from tests.support.spoils import Spoil, content, survivors, without_meaning
from tests.support.two_keys import SITES, Retarget

RELA = f".rela{TABLE}"


@pytest.fixture(scope="module")
def plain(made: Objects) -> bytes:
    """Two keys, their trampolines and five sites, without a table."""
    return made("two_keys").read_bytes()


@pytest.fixture(scope="module")
def recorded(plain: bytes) -> bytes:
    """The same with a table."""
    model = Model(plain)
    annotate(model, SITES)
    return model.dump()


def _proved(original: bytes, result: bytes) -> bool:
    """Whether a file is proved to be the original with only the key `two` retargeted.

    A site of the other one may be bound to where that leads, by a single bit.
    """
    try:
        return prove_retarget(original, result).changed_keys == ("two",)
    except VerificationError:
        return False


@pytest.fixture(scope="module")
def retargeted(recorded: bytes) -> bytes:
    """The key `two` leads to a function that is elsewhere, and so does all that belongs to it."""
    change = Retarget(recorded)
    return change.to_symbol(change.model.add_undefined("elsewhere")).dump()


@pytest.fixture(scope="module")
def emptied(recorded: bytes) -> bytes:
    """The key `two` is NULL."""
    return Retarget(recorded).to_null().dump()


def test_every_bit_of_a_retargeted_object_counts(recorded: bytes, retargeted: bytes) -> None:
    found = survivors(retargeted, lambda spoilt: _proved(recorded, spoilt))
    model = Model(retargeted)
    name = model.strings.offset + model.symbols[model.symbol("elsewhere")].name
    # The name of the new target may be any, as far as this file knows.
    assert found <= without_meaning(retargeted) | set(range(name, name + len("elsewhere")))


def test_every_bit_of_an_emptied_object_counts(recorded: bytes, emptied: bytes) -> None:
    found = survivors(emptied, lambda spoilt: _proved(recorded, spoilt))
    assert found <= without_meaning(emptied)


def _to(table: str, offset: int, name: str, addend: int | None = None) -> Spoil:
    def spoil(model: Model) -> None:
        entry = model.entry(table, offset)
        entry.symbol = model.symbol(name)
        entry.addend = entry.addend if addend is None else addend

    return spoil


def _type(table: str, offset: int, kind: int) -> Spoil:
    return lambda model: setattr(model.entry(table, offset), "type", kind)


TEXT, HOME, SLOT = (".rela.text", 0x21), (".rela.static_call.text", 9), (".rela.data", 8)

RETARGET_SPOILS: dict[str, Spoil] = {
    "a site leads elsewhere": _to(*TEXT, "first_target"),
    "a site leads to another trampoline": _to(*TEXT, "__SCT__one"),
    "a site leads to data": _to(*TEXT, "__SCK__two"),
    "a site leads beside its target": _to(*TEXT, "elsewhere", -3),
    "the trampoline leads elsewhere": _to(*HOME, "second_target"),
    "the trampoline leads to itself": _to(*HOME, "__SCT__two"),
    "the trampoline leads beside its target": _to(*HOME, "elsewhere", 0),
    "the key leads elsewhere": _to(*SLOT, "second_target"),
    "the key leads to its trampoline": _to(*SLOT, "__SCT__two"),
    "the key leads beside its target": _to(*SLOT, "elsewhere", 4),
    "the key has a relative relocation": _type(*SLOT, R_X86_64_PC32),
    "the key has no relocation": _type(*SLOT, R_X86_64_NONE),
    "a site has an absolute relocation": _type(*TEXT, R_X86_64_64),
    "a site has no relocation": _type(*TEXT, R_X86_64_NONE),
    "the trampoline has no relocation": _type(*HOME, R_X86_64_NONE),
    "another key's site leads elsewhere": _to(".rela.text", 0x26, "elsewhere"),
    "another key's trampoline leads elsewhere": _to(".rela.static_call.text", 1, "elsewhere"),
    "another key leads elsewhere": _to(".rela.data", 0, "elsewhere"),
    "bytes below a site's relocation": content(".text", 0x21, b"\1"),
    "bytes below the trampoline's relocation": content(".static_call.text", 9, b"\1"),
    "bytes below the key's relocation": content(".data", 8, b"\1"),
    "another signature of the trampoline": content(".static_call.text", 13, b"SCT"),
    "a call became a jump": content(".text", 0x20, b"\xe9"),
    "a jump became a call": content(".text", 0x38, b"\xe8"),
    "a site is a nop with a relocation": content(".text", 0x20, abi.NOP5),
    "code changed": content(".text", 0x2F, b"\x90"),
    "code of another function changed": content(".text", 0, b"\x90"),
    "a relocation more": lambda model: model.entries(".rela.text").append(Entry(0x10, 2, 3, -4)),
    "a second relocation of a site": lambda model: model.entries(".rela.text").append(Entry(0x21, 4, 3, -4)),
    "a relocation inside of a site": lambda model: model.entries(".rela.text").append(Entry(0x22, 4, 3, -4)),
    "an empty relocation more": lambda model: model.entries(".rela.text").append(Entry(0x21, R_X86_64_NONE, 0, 0)),
    "a relocation is gone": lambda model: model.entries(".rela.text").pop(),
    "a record changed": lambda model: setattr(model.entries(RELA)[1], "addend", 0),
    "a record is another key's": _to(RELA, 4, "__SCK__two"),
    "a symbol that nobody needs": lambda model: model.add_undefined("more"),
    "a symbol that was there": lambda model: setattr(
        model.symbols[-1], "name", model.symbols[model.symbol("both")].name
    ),
    "a weak symbol": lambda model: setattr(model.symbols[-1], "info", 0x20),
    "a symbol of a function": lambda model: setattr(model.symbols[-1], "info", 0x12),
    "a defined symbol": lambda model: setattr(model.symbols[-1], "section", 1),
    "a symbol with a value": lambda model: setattr(model.symbols[-1], "value", 1),
    "a hidden symbol": lambda model: setattr(model.symbols[-1], "other", 2),
    "an old symbol changed": lambda model: setattr(model.symbols[model.symbol("both")], "value", 0x21),
    "names that nobody has": lambda model: model.strings.content.extend(b"other\0"),
    "a section more": lambda model: model.add_section(".more", type=1, flags=0, alignment=1, entry_size=0),
    "a section is larger": lambda model: model.section(".data").content.append(0),
    "a local symbol more": lambda model: setattr(model.symtab, "info", 1),
}


@pytest.mark.parametrize("spoil", RETARGET_SPOILS.values(), ids=RETARGET_SPOILS.keys())
def test_a_retargeted_object_is_refused_where(spoil: Spoil, recorded: bytes, retargeted: bytes) -> None:
    model = Model(retargeted)
    spoil(model)
    spoilt = model.dump()
    assert spoilt != retargeted
    for prove in (prove_retarget, prove_object):
        with pytest.raises(VerificationError):
            prove(recorded, spoilt)


NULL_SPOILS: dict[str, Spoil] = {
    "a relocation stayed": lambda model: vars(model.entry(*TEXT)).update(type=4, symbol=1),
    "a site returns 0": content(".text", 0x20, abi.RET0_CS),
    "a call returns": content(".text", 0x20, abi.RET_SITE),
    "a jump falls through": content(".text", 0x38, abi.NOP5),
    "the trampoline falls through": content(".static_call.text", 8, abi.NOP5),
    "an empty relocation has a symbol": lambda model: setattr(model.entry(*TEXT), "symbol", 1),
    "the key has bytes": content(".data", 8, b"\1"),
    "a site is led on": _to(".rela.text", 0x26, "__SCT__two"),
}


@pytest.mark.parametrize("spoil", NULL_SPOILS.values(), ids=NULL_SPOILS.keys())
def test_an_emptied_object_is_refused_where(spoil: Spoil, recorded: bytes, emptied: bytes) -> None:
    model = Model(emptied)
    spoil(model)
    with pytest.raises(VerificationError):
        prove_object(recorded, model.dump())


def test_sites_of_a_key_that_is_elsewhere_stay(made: Objects) -> None:
    model = Model(made("sections").read_bytes())
    original = model.dump()
    entry = next(e for e in model.entries(".rela.text") if e.symbol == model.symbol("__SCT__one"))
    entry.symbol = model.add_undefined("elsewhere")
    with pytest.raises(VerificationError, match=re.escape("one changed, whose key and trampoline are not both here")):
        prove_retarget(original, model.dump())


def test_an_ordinary_call_is_no_site(plain: bytes) -> None:
    """Without a table a site is known by where it leads, in either file, but it must have led there before."""
    model = Model(plain)
    for offset in (0x21, 0x2B):
        model.entry(".rela.text", offset).symbol = model.symbol("first_target")
    original = model.dump()
    model.entry(".rela.text", 0x21).symbol = model.symbol("__SCT__two")
    with pytest.raises(VerificationError, match="led neither to its trampoline"):
        prove_retarget(original, model.dump())
    bound = Model(plain)
    bound.entry(".rela.text", 0x21).symbol = bound.symbol("second_target")
    assert prove_retarget(bound.dump(), plain).sites == {"call": 1}


def test_a_section_that_may_hold_symbol_numbers_is_refused(plain: bytes) -> None:
    before = Model(plain)
    own = before.add_section(".unheard", type=0x6FFF4C7F, flags=0, alignment=1, entry_size=0)
    before.sections[own].link = before.sections.index(before.symtab)
    original = before.dump()
    after = Model(original)
    annotate(after, SITES)
    with pytest.raises(VerificationError, match="may hold symbol numbers"):
        prove_annotation(original, after.dump())


def test_a_key_leads_to_functions_only(plain: bytes) -> None:
    for name, addend in (("__SCK__one", 0), ("both", 4), ("both", -1)):
        change = Retarget(plain)
        change.to_symbol(change.model.symbol(name), sites=False)
        change.model.entry(*SLOT).addend += addend
        change.model.entry(*HOME).addend += addend
        with pytest.raises(VerificationError, match="leads to no function"):
            prove_retarget(plain, change.dump())


def test_records_without_sense_are_refused_in_either_file(recorded: bytes) -> None:
    model = Model(recorded)
    model.entries(RELA).pop()
    with pytest.raises(VerificationError):
        prove_retarget(recorded, model.dump())
