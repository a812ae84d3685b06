"""The proof of objects refuses whatever is not quite right: each test takes a right result and spoils one thing."""

import struct

import pytest

from staticcall.abi import static_call as abi
from staticcall.errors import VerificationError
from staticcall.verify.objects.annotation import prove_annotation
from staticcall.verify.objects.proof import prove_object
from tests.support.object_model import (
    R_X86_64_64,
    R_X86_64_NONE,
    R_X86_64_PC32,
    SHF_GROUP,
    SHT_NOBITS,
    SHT_PROGBITS,
    TABLE,
    Entry,
    Model,
    annotate,
)
from tests.support.objects import Objects
from tests.support.spoils import Spoil, content, survivors, without_meaning
from tests.support.two_keys import SITES

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


# ---- annotated objects ----


def test_every_bit_of_an_annotated_object_counts(plain: bytes, recorded: bytes) -> None:
    def annotated(spoilt: bytes) -> bool:
        try:
            return prove_annotation(plain, spoilt) > 0
        except VerificationError:
            return False

    found = survivors(recorded, annotated)
    assert found <= without_meaning(recorded)


def _swap_symbols(model: Model) -> None:
    one, two = model.symbol("both"), model.symbol("first_target")
    model.symbols[one], model.symbols[two] = model.symbols[two], model.symbols[one]


def _swap_symbols_and_follow(model: Model) -> None:
    _swap_symbols(model)
    numbers = (model.symbol("both"), model.symbol("first_target"))
    for entries in model.tables.values():
        for entry in entries:
            if entry.symbol in numbers:
                entry.symbol = sum(numbers) - entry.symbol


def _drop_record(number: int) -> Spoil:
    def spoil(model: Model) -> None:
        entries = model.entries(RELA)
        del entries[2 * number : 2 * number + 2]
        for entry in entries[2 * number :]:
            entry.offset -= 8
        del model.section(TABLE).content[:8]

    return spoil


def _swap_records(first: int, second: int) -> Spoil:
    def spoil(model: Model) -> None:
        entries = model.entries(RELA)
        for i in range(2):
            one, two = entries[2 * first + i], entries[2 * second + i]
            one.symbol, two.symbol, one.addend, two.addend = two.symbol, one.symbol, two.addend, one.addend

    return spoil


def _repeat_record(model: Model) -> None:
    entries = model.entries(RELA)
    size = len(model.section(TABLE).content)
    entries += [Entry(size + entry.offset - 32, entry.type, entry.symbol, entry.addend) for entry in entries[-2:]]
    model.section(TABLE).content += bytes(8)


def _record(number: int, **fields: int) -> Spoil:
    """Another value in the first entry of a record."""
    return lambda model: vars(model.entries(RELA)[2 * number]).update(fields)


def _key(number: int, **fields: int) -> Spoil:
    return lambda model: vars(model.entries(RELA)[2 * number + 1]).update(fields)


def _key_named(number: int, name: str) -> Spoil:
    return lambda model: setattr(model.entries(RELA)[2 * number + 1], "symbol", model.symbol(name))


def _addend(model: Model) -> None:
    """The site against a function's symbol instead of the section's."""
    entry = model.entries(RELA)[0]
    entry.symbol, entry.addend = model.symbol("both"), entry.addend - 0x20


def _section(name: str, **fields: int) -> Spoil:
    return lambda model: vars(model.section(name)).update(fields)


def _moved(name: str) -> Spoil:
    """A relocation of the object does not follow its symbol."""
    return lambda model: setattr(model.entries(name)[0], "symbol", 1)


def _swap_sections(model: Model) -> None:
    model.sections[5], model.sections[6] = model.sections[6], model.sections[5]


def _second_table(model: Model) -> None:
    annotate(model, SITES[:1])


def _unused_section_symbol(model: Model) -> None:
    model.section_symbol(model.number(".data"))


def _second_section_symbol(model: Model) -> None:
    number = model.add_section_symbol(model.number(".text"))
    model.entries(RELA)[0].symbol = number


def _only_weakly_local(model: Model) -> None:
    model.symtab.info += 1


def _group(model: Model) -> None:
    """The table says that it is in a group, and there is none."""
    for name in (TABLE, RELA):
        model.section(name).flags |= SHF_GROUP


ANNOTATION_SPOILS: dict[str, Spoil] = {
    "a record is missing": _drop_record(2),
    "the record of a jump is missing": _drop_record(0),
    "a record is there twice": _repeat_record,
    "jumps are out of order": _swap_records(0, 1),
    "calls are out of order": _swap_records(3, 4),
    "calls stand before jumps": _swap_records(1, 2),
    "a site's offset is too large": _record(2, addend=0x21),
    "a site's offset is too small": _record(2, addend=0x1F),
    "a site lies behind its section": _record(2, addend=0x1000),
    "a site lies before its section": _record(2, addend=-1),
    "a site is no call": _record(2, addend=0x2F),
    "a record is for what is no trampoline": _record(2, addend=0x31),
    "a site goes through a function": _addend,
    "a site goes through no symbol": _record(2, symbol=0),
    "a site goes through a symbol that is not there": _record(2, symbol=10_000),
    "a site's relocation has another type": _record(2, type=4),
    "a site's relocation is elsewhere": _record(2, offset=12),
    "a key's relocation has another type": _key(2, type=R_X86_64_64),
    "a key's relocation is elsewhere": _key(2, offset=21),
    "a call is a tail": _key(2, addend=1),
    "a jump is no tail": _key(0, addend=0),
    "a key has more flags": _key(0, addend=3),
    "a key has a displacement": _key(2, addend=-4),
    "a record names another key": _key_named(2, "__SCK__one"),
    "a record names the trampoline": _key_named(2, "__SCT__two"),
    "a record names a function": _key_named(2, "both"),
    "a key that is not there": _key(2, symbol=10_000),
    "the table holds a byte": content(TABLE, 7, b"\1"),
    "the table is longer": lambda model: model.section(TABLE).content.extend(bytes(8)),
    "the table is shorter": lambda model: model.section(TABLE).content.__delitem__(slice(8)),
    "the table is not writable": _section(TABLE, flags=2),
    "the table is code": _section(TABLE, flags=7),
    "the table is aligned": _section(TABLE, alignment=4),
    "the table has no entry size": _section(TABLE, entry_size=0),
    "the table has an address": _section(TABLE, address=0x1000),
    "the table has a link": _section(TABLE, link=1),
    "the table holds no bytes": _section(TABLE, type=SHT_NOBITS, size=40),
    "the table claims a group": _group,
    "the relocations are for another section": _section(RELA, info=1),
    "the relocations have no symbols": _section(RELA, link=0),
    "the relocations do not say that info is a section": _section(RELA, flags=0),
    "the relocations are no relocations": _section(RELA, type=SHT_PROGBITS),
    "one more relocation": lambda model: model.entries(RELA).append(Entry(0, R_X86_64_NONE, 0, 0)),
    "one relocation less": lambda model: model.entries(RELA).pop(),
    "a second table": _second_table,
    "a section more": lambda model: model.add_section(".more", type=1, flags=0, alignment=1, entry_size=0),
    "two sections changed places": _swap_sections,
    "a section has another name": lambda model: setattr(model.sections[3], "name", model.sections[1].name),
    "names of sections that there are not": lambda model: model.names.content.extend(b"other\0"),
    "names of symbols that there are not": lambda model: model.strings.content.extend(b"other\0"),
    "a section has other flags": _section(".data", flags=2),
    "a section has another type": _section(".note.GNU-stack", type=7),
    "a section has another alignment": _section(".data", alignment=4),
    "a section has another entry size": _section(".data", entry_size=8),
    "a section has another address": _section(".text", address=16),
    "a section without bytes is larger": _section(".bss", size=8),
    "a section has more bytes": lambda model: model.section(".data").content.append(0),
    "code changed": content(".text", 0x2F, b"\x90"),
    "a call is a nop": content(".text", 0x20, abi.NOP5),
    "bytes below a relocation changed": content(".text", 0x21, b"\1"),
    "a trampoline changed": content(".static_call.text", 0, abi.RET_TRAMPOLINE),
    "data changed": content(".data", 0, b"\1"),
    "a relocation did not follow its symbol": _moved(".rela.data"),
    "a relocation has another addend": lambda model: setattr(model.entries(".rela.text")[0], "addend", -5),
    "a relocation has another offset": lambda model: setattr(model.entries(".rela.text")[0], "offset", 0x22),
    "a relocation has another type": lambda model: setattr(model.entries(".rela.text")[0], "type", R_X86_64_PC32),
    "relocations changed places": lambda model: model.entries(".rela.text").reverse(),
    "a relocation is gone": lambda model: model.entries(".rela.text").pop(),
    "two symbols changed places": _swap_symbols,
    "two symbols changed places and all followed": _swap_symbols_and_follow,
    "a symbol has another value": lambda model: setattr(model.symbols[model.symbol("both")], "value", 0x21),
    "a symbol has another binding": lambda model: setattr(model.symbols[model.symbol("both")], "info", 0x22),
    "a symbol has another name": lambda model: setattr(model.symbols[model.symbol("both")], "name", 1),
    "a symbol is hidden": lambda model: setattr(model.symbols[model.symbol("both")], "other", 2),
    "a symbol is gone": lambda model: model.symbols.pop(),
    "a global symbol more": lambda model: model.add_undefined("more"),
    "a section symbol that nobody needs": _unused_section_symbol,
    "a section symbol where there was one": _second_section_symbol,
    "a section symbol with a size": lambda model: setattr(model.symbols[1], "size", 4),
    "a section symbol with a value": lambda model: setattr(model.symbols[1], "value", 4),
    "a section symbol of another section": lambda model: setattr(model.symbols[1], "section", 7),
    "a section symbol with a name": lambda model: setattr(model.symbols[1], "name", 1),
    "a global symbol counts as local": _only_weakly_local,
    "another machine": lambda model: model.header.__setitem__(2, 3),
    "another kind of file": lambda model: model.header.__setitem__(1, 2),
    "other flags of the file": lambda model: model.header.__setitem__(7, 1),
    "an entry point": lambda model: model.header.__setitem__(4, 1),
    "other section names": lambda model: model.header.__setitem__(13, 10),
}


@pytest.mark.parametrize("spoil", ANNOTATION_SPOILS.values(), ids=ANNOTATION_SPOILS.keys())
def test_an_annotated_object_is_refused_where(spoil: Spoil, plain: bytes, recorded: bytes) -> None:
    model = Model(recorded)
    spoil(model)
    spoilt = model.dump()
    assert spoilt != recorded
    for prove in (prove_annotation, prove_object):
        with pytest.raises(VerificationError):
            prove(plain, spoilt)


def test_bytes_that_belong_to_nobody_are_refused(plain: bytes, recorded: bytes) -> None:
    model = Model(recorded)
    model.section(".data").alignment = 256
    before = Model(plain)
    before.section(".data").alignment = 256
    original, result = before.dump(), model.dump()
    assert prove_annotation(original, result) == len(SITES)
    gap = model.section(".rela.text").offset + len(model.section(".rela.text").content)
    assert gap < model.section(".data").offset
    for spoilt in (result[:gap] + b"x" + result[gap + 1 :], result + b"x"):
        with pytest.raises(VerificationError, match=r"belong to no section|behind the last"):
            prove_annotation(original, spoilt)


def test_sections_that_are_gone_are_missed(plain: bytes, recorded: bytes) -> None:
    model = Model(recorded)
    model.header[12] = Model(plain).header[12] - 1
    header = struct.pack("<16sHHIQQQIHHHHHH", *model.header)
    with pytest.raises(VerificationError):
        prove_annotation(plain, header + recorded[len(header) :])


def test_a_table_beside_the_one_that_was_there_is_refused(recorded: bytes) -> None:
    model = Model(recorded)
    annotate(model, SITES)
    with pytest.raises(VerificationError):
        prove_annotation(recorded, model.dump())


def test_a_jump_outside_of_functions_needs_no_record(plain: bytes) -> None:
    before = Model(plain)
    before.symbols[before.symbol("both")].size = 0
    original = before.dump()
    model = Model(original)
    annotate(model, SITES[2:])
    assert prove_annotation(original, model.dump()) == 3
    before.symbols[before.symbol("both")].size = 0x19  # up to the second jump
    original = before.dump()
    model = Model(original)
    annotate(model, SITES[1:])
    with pytest.raises(VerificationError, match="no record of the branch"):
        prove_annotation(original, model.dump())


def test_an_alternative_instruction_is_no_site(made: Objects) -> None:
    original = made("two_keys").read_bytes()
    before = Model(original)
    text = before.section(".text")
    text.name = before.add_string(before.names, ".altinstr_replacement")
    original = before.dump()
    assert prove_annotation(original, original) == 0
    model = Model(original)
    annotate(model, [site._replace(section=".altinstr_replacement") for site in SITES])
    with pytest.raises(VerificationError, match="no section with code"):
        prove_annotation(original, model.dump())
