"""The proof of pinned sites: which records may be replaced by which, and where a site that lost its own has to lead."""

from __future__ import annotations

import re
import struct
import subprocess
from pathlib import Path

import pytest

from staticcall.abi.static_call import NOP5, RET0_CS, RET_SITE
from staticcall.errors import VerificationError
from staticcall.model.change import Edit, EditKind
from staticcall.verify.objects.retarget import prove_retarget
from staticcall.verify.proof import prove
from tests.support.object_model import R_X86_64_PLT32, TABLE, Model, annotate
from tests.support.objects import Objects
from tests.support.spoils import Spoil
from tests.support.tool import report, succeed
from tests.support.two_keys import SITES, Retarget
from tests.support.vmlinux import Vmlinux
from tests.test_verify import SOURCES, UNCHANGED, VARIANTS, Program, bound, inspect, parse, run, write

RECORD = struct.Struct("<ii")


@pytest.fixture(scope="module", params=["exec", "pie", "relr"])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Program:
    path = tmp_path_factory.mktemp("pin-proof") / request.param
    files = [SOURCES / name for name in ("main.c", "sites.S")]
    subprocess.run(["gcc", "-O1", *VARIANTS[request.param], "-o", path, *files], check=True)
    return inspect(path)


def _records(p: Program) -> list[tuple[int, int, int]]:
    """The linked address of every record, and what it resolves to."""
    data, found = p.path.read_bytes(), []
    for address in range(p["table"], p["table_end"], RECORD.size):
        site, key = RECORD.unpack_from(data, p.offset(address))
        found.append((address, address + site, address + 4 + key))
    return found


def _record(p: Program, site: str) -> tuple[int, int, int]:
    (found,) = (record for record in _records(p) if record[1] == p[f"site_{site}"])
    return found


def _lists(p: Program, record: int, site: int, key: int) -> tuple[int, bytes]:
    """A change of a record, by what it shall resolve to."""
    return p.offset(record), RECORD.pack(site - record, key - record - 4)


def _copies(p: Program, text: str) -> list[tuple[int, bytes]]:
    """Changes of records, written `site:donor`."""
    found = []
    for pair in text.split():
        site, _, donor = pair.partition(":")
        _, *same = _record(p, donor)
        found.append(_lists(p, _record(p, site)[0], *same))
    return found


def _pinned(p: Program, code: str, copies: str) -> Path:
    return p.patched([*parse(p, code), *_copies(p, copies)])


LEGAL = {
    "a donor of the same key": ("site_call_alpha=e8>first", "call_alpha:tail_alpha", 1),
    "a donor of another key": ("site_call_alpha=e8>first", "call_alpha:tail_beta", 1),
    "a donor that is patched itself": (
        "site_call_alpha=e8>first site_prefixed_alpha=2ee8>first",
        "call_alpha:prefixed_alpha",
        1,
    ),
    "several sites": (
        bound("first"),
        "call_alpha:short_alpha prefixed_alpha:short_alpha straddling_alpha:call_gamma tail_alpha:call_gamma"
        " jcc_alpha:call_gamma",
        5,
    ),
    "sites without a destination": (
        f"site_call_beta={NOP5.hex()} site_tail_beta={RET_SITE.hex()} site_call_gamma={RET0_CS.hex()}",
        "call_beta:prefixed_beta tail_beta:prefixed_beta call_gamma:tail_gamma",
        3,
    ),
    "a jump to the thunk that returns": ("site_tail_delta=e9>__x86_return_thunk", "tail_delta:jcc_delta", 1),
    "a condition": ("site_jcc_delta=0f84>__static_call_return", "jcc_delta:tail_delta", 1),
}


@pytest.mark.parametrize("case", LEGAL)
def test_records_may_become_copies_where_their_sites_go_straight(program: Program, case: str) -> None:
    code, copies, count = LEGAL[case]
    patched = _pinned(program, code, copies)
    proof = prove(program.path, patched)
    assert proof.records == count
    assert proof.compared == program.path.stat().st_size
    assert run(patched) == UNCHANGED
    out = succeed("verify", program.path, patched)
    assert f"replaced records: {count}\n" in out


def test_a_site_may_be_pinned_to_a_new_target(program: Program) -> None:
    code = f"{bound('second')} __SCT__alpha=e9>second alpha>second"
    proof = prove(program.path, _pinned(program, code, "call_alpha:call_beta jcc_alpha:call_beta"))
    assert (proof.records, proof.keys, proof.trampolines) == (2, 1, 1)


def test_a_site_that_was_direct_before_may_lose_its_record(program: Program, tmp_path: Path) -> None:
    path = tmp_path / "bound"
    write(path, program.patched(parse(program, bound("first"))).read_bytes())
    before = inspect(path)
    proof = prove(path, _pinned(before, "", "call_alpha:tail_alpha"))
    assert (proof.sites, proof.records, proof.changed_keys) == ({}, 1, ("alpha",))


def test_a_record_that_was_there_twice_may_go_once(program: Program, tmp_path: Path) -> None:
    """As long as one is left the site follows its key: it may stay with the trampoline."""
    path = tmp_path / "twice"
    write(path, _pinned(program, "site_call_alpha=e8>first", "call_alpha:tail_beta").read_bytes())
    before = inspect(path)
    (lonely, *_), *_ = (record for record in _records(before) if record[1] == program["site_tail_beta"])
    _, *other = _record(before, "tail_gamma")
    assert prove(path, before.patched([_lists(before, lonely, *other)])).records == 1


ILLEGAL = {
    "a site that goes by its trampoline": ("", "call_alpha:tail_alpha", "goes by the trampoline of alpha"),
    "a site that goes elsewhere": ("site_call_alpha=e8>second", "call_alpha:tail_alpha", "neither the trampoline"),
    "a site of a key that went elsewhere": (
        "__SCT__alpha=e9>second alpha>second",
        "call_alpha:tail_beta",
        "goes by the trampoline",
    ),
    "a site that did not go along with its key": (
        "site_call_alpha=e8>first __SCT__alpha=e9>second alpha>second",
        "call_alpha:tail_beta",
        "neither the trampoline",
    ),
    "a site that reads its key": ("", "through_key:tail_beta", "which no site of alpha can be"),
    "a site that reads a pointer": ("", "through_pointer:tail_beta", "which no site of alpha can be"),
    "a key that only run time knows": ("", "call_eta:tail_beta", "only run time knows"),
    "a nop that is none": ("", "call_beta:tail_beta", "goes by the trampoline"),
    "two that take each other's place": (bound("first"), "call_alpha:jcc_alpha jcc_alpha:call_alpha", "no copy"),
    "a donor that is gone": (bound("first"), "call_alpha:jcc_alpha jcc_alpha:call_beta", "no copy"),
}


@pytest.mark.parametrize("case", ILLEGAL)
def test_a_site_that_would_not_be_permanent_keeps_its_record(program: Program, case: str) -> None:
    code, copies, message = ILLEGAL[case]
    patched = _pinned(program, code, copies)
    with pytest.raises(VerificationError, match=message) as raised:
        prove(program.path, patched)
    assert raised.value.path == patched
    assert raised.value.offset is not None


# What a record becomes: whose site and how far behind it, whose key and how far behind it.
NO_COPIES = {
    "the site alone": ("donor", 0, "own", 0),
    "the key alone": ("own", 0, "donor", 0),
    "another TAIL flag": ("donor", 0, "donor", -1),
    "the flag INIT": ("donor", 0, "donor", 2),
    "its own TAIL flag": ("own", 0, "own", 1),
    "beside the donor": ("donor", 1, "donor", 0),
    "a function": ("function", 0, "donor", 0),
    "beside its key": ("donor", 0, "donor", 8),
    "nothing": ("nothing", 0, "nothing", 0),
}


@pytest.mark.parametrize("case", NO_COPIES)
def test_a_record_that_changes_becomes_a_whole_copy(program: Program, case: str) -> None:
    address, site, key = _record(program, "call_alpha")
    _, donor, other = _record(program, "tail_beta")
    whose, distance, whose_key, key_distance = NO_COPIES[case]
    sites = {"own": site, "donor": donor, "function": program["first"], "nothing": 0}
    keys = {"own": key, "donor": other, "nothing": 0}
    change = _lists(program, address, sites[whose] + distance, keys[whose_key] + key_distance)
    patched = program.patched([*parse(program, "site_call_alpha=e8>first"), change])
    with pytest.raises(VerificationError, match="no copy of a record that stays"):
        prove(program.path, patched)


def test_every_bit_of_the_table_counts(program: Program) -> None:
    patched = _pinned(program, bound("first"), "call_alpha:tail_beta jcc_alpha:tail_beta")
    data = bytearray(patched.read_bytes())
    start, stop = program.offset(program["table"]), program.offset(program["table_end"] - 1) + 1
    for offset in range(start, stop):
        for bit in (0x01, 0x80):
            data[offset] ^= bit
            with pytest.raises(VerificationError):
                prove(program.path, write(patched, data))
            data[offset] ^= bit
    assert prove(program.path, write(patched, data)).records == 2


def test_edits_tell_of_every_replaced_record(program: Program) -> None:
    patched = _pinned(program, "site_call_alpha=e8>first", "call_alpha:tail_beta")
    before, after = program.path.read_bytes(), patched.read_bytes()
    address, _, _ = _record(program, "call_alpha")

    def edit(linked: int, size: int, kind: EditKind) -> Edit:
        at = program.offset(linked)
        return Edit(at, before[at : at + size], after[at : at + size], kind, "alpha", linked)

    site = edit(program["site_call_alpha"], 5, EditKind.SITE)
    record = edit(address, 8, EditKind.RECORD)
    assert prove(program.path, patched, [site, record]).records == 1
    wrong = {
        "no edit tells": [site],
        "touches a record": [site, record._replace(kind=EditKind.SITE)],
        "touches a site": [site._replace(kind=EditKind.RECORD), record],
        "elsewhere": [site, record._replace(address=address + 8)],
    }
    for message, edits in wrong.items():
        with pytest.raises(VerificationError, match=message):
            prove(program.path, patched, edits)


@pytest.mark.kernel
def test_a_kernel_repeats_no_record_of_what_it_frees(slim: Vmlinux, tmp_path: Path) -> None:
    pinned, edits = tmp_path / "pinned", tmp_path / "edits.json"
    succeed("patch", slim.path, "--pin=might_resched", "-o", pinned, "--edits", edits)
    (finding,) = report("--fail-on", "never", pinned)["findings"]
    number = int(re.findall(r"repeat record (\d+)", finding["message"])[0])
    start = slim.address("__start_static_call_sites")
    freed = next(call for call in slim.calls if call.section.name.startswith(".init"))
    donor = next(call for call in slim.calls if call.record == number)
    assert not donor.section.name.startswith((".init", ".exit"))
    assert donor.key == "might_resched"
    # A pin takes records that are gone after the boot as well, but does not make more of them.
    record = next(c for c in slim.calls if c.key == "might_resched" and c.stays and slim.is_direct(c, "lutomirski"))
    here = start + 8 * record.record
    section = slim.section(here)
    with pinned.open("r+b") as file:
        file.seek(section.offset + here - section.address)
        key = slim.keys[freed.key].address + freed.tail
        file.write(RECORD.pack(freed.address - here, key - here - 4))
    with pytest.raises(VerificationError, match="is freed after boot"):
        prove(slim.path, pinned)


# ---- objects ----

RELA = f".rela{TABLE}"
# The records of the table that `annotate` makes, by their sites.
ONE_TAIL, TWO_TAIL, TWO_FIRST, ONE_CALL, TWO_SECOND = range(5)


@pytest.fixture(scope="module")
def recorded(made: Objects) -> bytes:
    """Two keys, their trampolines and five sites with records."""
    model = Model(made("two_keys").read_bytes())
    annotate(model, SITES)
    return model.dump()


def _copy(model: Model, record: int, donor: int) -> None:
    for half in (0, 4):
        own, other = (model.entry(RELA, 8 * number + half) for number in (record, donor))
        own.symbol, own.addend = other.symbol, other.addend


def _bind(model: Model, *offsets: int) -> None:
    """Lead calls of the key `two` to where it leads."""
    for offset in offsets:
        model.entry(".rela.text", offset + 1).symbol = model.symbol("second_target")


def _pin_two(model: Model) -> None:
    _bind(model, 0x20, 0x2A)
    _copy(model, TWO_FIRST, TWO_TAIL)
    _copy(model, TWO_SECOND, ONE_CALL)


def _spoilt(original: bytes, *spoils: Spoil) -> bytes:
    model = Model(original)
    _pin_two(model)
    for spoil in spoils:
        spoil(model)
    return model.dump()


def test_records_of_objects_may_become_copies(recorded: bytes) -> None:
    proof = prove_retarget(recorded, _spoilt(recorded))
    assert (proof.sites, proof.records, proof.changed_keys) == ({"call": 2}, 2, ("two",))


def test_sites_of_objects_may_be_pinned_to_a_new_target(recorded: bytes) -> None:
    change = Retarget(recorded)
    change.to_symbol(change.model.add_undefined("elsewhere"))
    _copy(change.model, TWO_FIRST, ONE_TAIL)
    assert prove_retarget(recorded, change.dump()).records == 1


def test_sites_of_objects_may_be_pinned_to_nothing(recorded: bytes) -> None:
    change = Retarget(recorded).to_null()
    _copy(change.model, TWO_FIRST, ONE_TAIL)
    _copy(change.model, TWO_TAIL, ONE_TAIL)
    assert prove_retarget(recorded, change.dump()).records == 2


def test_a_direct_site_of_an_object_may_lose_its_record(recorded: bytes) -> None:
    before = Model(recorded)
    _bind(before, 0x20)
    after = Model(before.dump())
    _copy(after, TWO_FIRST, ONE_TAIL)
    proof = prove_retarget(before.dump(), after.dump())
    assert (proof.sites, proof.records, proof.changed_keys) == ({}, 1, ("two",))


def _lead(offset: int, name: str) -> Spoil:
    return lambda model: setattr(model.entry(".rela.text", offset + 1), "symbol", model.symbol(name))


def _half(record: int, half: int, donor: int) -> Spoil:
    def spoil(model: Model) -> None:
        own, other = (model.entry(RELA, 8 * number + half) for number in (record, donor))
        own.symbol, own.addend = other.symbol, other.addend

    return spoil


def _add(record: int, half: int, distance: int) -> Spoil:
    def spoil(model: Model) -> None:
        model.entry(RELA, 8 * record + half).addend += distance

    return spoil


SPOILS: dict[str, tuple[Spoil, str]] = {
    "a site by its trampoline": (_lead(0x20, "__SCT__two"), "has lost its record"),
    "a site elsewhere": (_lead(0x20, "first_target"), "neither to its trampoline nor"),
    "the other half is another's": (_half(TWO_FIRST, 4, ONE_TAIL), "no copy"),
    "one half is another's": (_half(TWO_FIRST, 0, ONE_CALL), "no copy"),
    "other flags": (_add(TWO_FIRST, 4, -1), "no copy"),
    "beside its site": (_add(TWO_SECOND, 0, 1), "no copy"),
    "a donor that changed": (lambda model: _copy(model, ONE_CALL, ONE_TAIL), "no copy|has lost its record"),
    "another type": (
        lambda model: setattr(model.entry(RELA, 8 * TWO_FIRST), "type", R_X86_64_PLT32),
        "no copy|two relocations",
    ),
    "a relocation elsewhere": (lambda model: setattr(model.entry(RELA, 8 * TWO_FIRST), "offset", 1), "."),
    "bytes in the table": (lambda model: model.section(TABLE).content.__setitem__(0, 1), "."),
    "a call without a table's word": (_lead(0x25, "second_target"), "neither to its trampoline nor"),
}


@pytest.mark.parametrize("case", SPOILS)
def test_one_spoilt_thing_about_a_pinned_object_is_refused(recorded: bytes, case: str) -> None:
    spoil, message = SPOILS[case]
    with pytest.raises(VerificationError, match=message):
        prove_retarget(recorded, _spoilt(recorded, spoil))
