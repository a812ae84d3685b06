"""The proof of a rewritten archive, and random damage to all that takes part in making it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from staticcall.errors import MalformedError, StaticcallError, UnsupportedError, VerificationError
from staticcall.model.archive import Member, MemberKind
from staticcall.read.archive import read_members
from staticcall.verify.archive import same_archive
from staticcall.write.archive import rebuild
from tests.support.archives import LONG, MAGIC, Bench, Library, make_bench, new_contents, packed, rewritten
from tests.support.refusals import at_most

SECONDS = 5
# The same examples in every run.
repeatable = partial(
    settings,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return make_bench(tmp_path_factory.mktemp("archives"))


@pytest.fixture
def gnu(bench: Bench) -> Library:
    return bench.libraries["ar-D"]


# Proving


def test_the_proof_names_the_files_that_differ(bench: Bench) -> None:
    for library in bench.libraries.values():
        news = new_contents(library)
        changed = same_archive(library.old, rewritten(library, 3, 6))

        assert [(change.number, change.name) for change in changed] == [(3, LONG), (6, "first.o")]
        assert [change.after for change in changed] == [news[3], news[6]]
        members = read_members(library.old)
        assert [change.before for change in changed] == [members[i].content(library.old) for i in (3, 6)]
        assert same_archive(library.old, library.old) == []


Spoil = Callable[[bytearray, Sequence[Member]], object]


def put(data: bytearray, at: int, content: bytes) -> None:
    data[at : at + len(content)] = content


def swap_places(data: bytearray, members: Sequence[Member]) -> None:
    """Let the first symbol of the index be the second one's member's, and the other way round."""
    at = members[0].offset + 4
    data[at : at + 8] = data[at + 4 : at + 8] + data[at : at + 4]


SPOILED: Final[dict[str, Spoil]] = {
    "a date": lambda data, members: put(data, members[4].header + 16, b"7"),
    "a user": lambda data, members: put(data, members[4].header + 28, b"7"),
    "a mode": lambda data, members: put(data, members[4].header + 40, b"7"),
    "a name": lambda data, members: put(data, members[4].header, b"mutes"),
    "a long name's place": lambda data, members: put(data, members[3].header, b"/%d" % (len(LONG) + 2)),
    "the long names": lambda data, members: put(data, members[1].offset, b"b"),
    "a size with a zero in front": lambda data, members: put(data, members[4].header + 48, b"08"),
    "the padding of what changed": lambda data, members: put(data, members[8].end - 1, b"\0"),
    "the padding of what did not": lambda data, members: put(data, members[9].end - 1, b"\0"),
    "the index's names": lambda data, members: put(data, members[0].offset + 4 + 16, b"O"),
    "the index's count": lambda data, members: put(data, members[0].offset, b"\0\0\0\3"),
    "the index's very large count": lambda data, members: put(data, members[0].offset, b"\xff"),
    "the index's places": swap_places,
    "one place of the index": lambda data, members: put(data, members[0].offset + 4, b"\xff"),
    "the magic": lambda data, _: put(data, 0, b"?"),
    "the end": lambda data, members: data.__delitem__(slice(members[-1].header, None)),
    "the last byte": lambda data, _: data.pop(),
    "what follows": lambda data, members: data.extend(bytes(data[members[-1].header : members[-1].end])),
}


@pytest.fixture
def odd(bench: Bench) -> tuple[bytes, bytes]:
    """An archive and its rewriting: member 4 and 8 changed, 9 did not and has padding."""
    old = bench.libraries["ar-D"].old
    members = read_members(old)
    old = rebuild(old, members, {8: b"1234", 9: members[9].content(old) + b"!" * (1 - members[9].size % 2)})
    return old, rebuild(old, read_members(old), {4: b"now even", 8: b"123"})


@pytest.mark.parametrize("name", SPOILED)
def test_the_proof_fails_where_anything_but_contents_differs(odd: tuple[bytes, bytes], name: str) -> None:
    original, sound = odd
    assert [change.number for change in same_archive(original, sound)] == [4, 8]
    data = bytearray(sound)
    SPOILED[name](data, read_members(sound))
    assert data != sound

    with pytest.raises(VerificationError):
        same_archive(original, bytes(data))


def test_the_proof_fails_where_members_have_another_order() -> None:
    with pytest.raises(VerificationError):
        same_archive(packed((b"a/", b"1"), (b"b/", b"1")), packed((b"b/", b"1"), (b"a/", b"1")))


def test_a_damaged_original_is_no_failed_proof(gnu: Library) -> None:
    with pytest.raises(MalformedError):
        same_archive(gnu.old[:-1], gnu.new)
    with pytest.raises(VerificationError):
        same_archive(gnu.old, gnu.new[:-3])


@pytest.mark.parametrize("place", [b"/1", b"/6", b"/7", b"/999999999999999", b"/x", b"/", b"//"])
def test_a_changed_file_without_a_name_is_no_proof(place: bytes) -> None:
    table = (b"//", b"long/\nx\n")

    with pytest.raises((MalformedError, VerificationError)):
        same_archive(packed(table, (place, b"old")), packed(table, (place, b"new")))


# Random damage


class Damage(NamedTuple):
    """Where (a fraction of the archive, or a header's field of a member) and what is put there."""

    member: int
    field: int
    content: bytes


FIELDS = (0, 1, 16, 28, 34, 40, 48, 49, 50, 58, 59, 60, 61, 63, 64, 67, 68, 72, 76)
PIECES = (b"/", b"//", b"/0 ", b"/1 ", b"#1/9", b"0", b"9", b" ", b"1 ", b"9999999999", b"`\n", b"\n", b"\0", b"\xff")

damages = st.lists(
    st.builds(
        Damage,
        st.integers(0, 9),
        st.one_of(st.sampled_from(FIELDS), st.integers(0, 2000)),
        st.one_of(st.sampled_from(PIECES), st.binary(min_size=1, max_size=4)),
    ),
    min_size=1,
    max_size=3,
)
cuts = st.one_of(st.just(0), st.just(0), st.just(0), st.integers(1, 4000))


def damaged(data: bytes, damage: Sequence[Damage], cut: int) -> bytes:
    members = read_members(data)
    result = bytearray(data)
    for member, field, content in damage:
        put(result, members[member].header + field, content)
    return bytes(result[: len(result) - cut])


def check_sound(data: bytes, members: Sequence[Member]) -> None:
    """See that members cover the archive without a gap, and that each is where its header says."""
    at = len(MAGIC)
    for member in members:
        assert (member.header, member.offset) == (at, at + 60)
        assert int(data[at + 48 : at + 58]) == member.size
        at = member.end
    assert at in (len(data), len(data) + 1)


@repeatable(max_examples=600)
@given(damages, cuts)
def test_a_damaged_archive_is_refused_or_sound(bench: Bench, damage: list[Damage], cut: int) -> None:
    data = damaged(bench.libraries["ar-D"].old, damage, cut)
    with at_most(SECONDS):
        try:
            members = read_members(data)
            check_sound(data, members)
            assert rebuild(data, members, {}) == data
            news = {i: b"new" * i for i, member in enumerate(members) if member.kind is MemberKind.MEMBER}
            after = rebuild(data, members, news)
        except (MalformedError, UnsupportedError) as error:
            event(type(error).__name__)
            return
        check_sound(after, read_members(after))
        changed = same_archive(data, after)
        event("sound")
        assert {change.number: change.after for change in changed} == news
        assert [change.name for change in changed] == [members[change.number].name for change in changed]


@repeatable(max_examples=600)
@given(damages, cuts)
def test_a_damaged_result_fails_the_proof_or_differs_in_contents_alone(
    bench: Bench, damage: list[Damage], cut: int
) -> None:
    library = bench.libraries["ar-D"]
    data = damaged(rewritten(library), damage, cut)
    with at_most(SECONDS):
        try:
            changed = same_archive(library.old, data)
        except StaticcallError as error:
            assert isinstance(error, VerificationError)
            event("refused")
            return
    event("proved")
    assert rebuild(library.old, read_members(library.old), {c.number: c.after for c in changed}) == data
