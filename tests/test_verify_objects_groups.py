"""The proof of annotated objects refuses groups and tables of LLVM that are not quite right."""

from pathlib import Path

import pytest

from staticcall.errors import VerificationError
from staticcall.verify.objects.annotation import prove_annotation
from tests.support.object_model import SHF_GROUP, SHT_GROUP, Model
from tests.support.objects import Objects
from tests.support.spoils import Spoil
from tests.support.tool import succeed


def _annotated(made: Objects, tmp_path: Path, name: str, compiler: str) -> tuple[bytes, bytes]:
    original, output = made(name, "clang" if compiler == "clang" else "gcc"), tmp_path / "out.o"
    succeed("annotate", original, "-o", output)
    return original.read_bytes(), output.read_bytes()


def _grouped_table(model: Model) -> int:
    return next(i for i, s in enumerate(model.sections) if s.entry_size == 8 and s.flags & SHF_GROUP)


def _group_number(model: Model) -> int:
    table = _grouped_table(model)
    members = ((i, s.content) for i, s in enumerate(model.sections) if s.type == SHT_GROUP)
    return next(i for i, content in members if table in memoryview(content).cast("I"))


def _leave_group(model: Model) -> None:
    del model.sections[_group_number(model)].content[-8:]


def _half_leave_group(model: Model) -> None:
    del model.sections[_group_number(model)].content[-4:]


def _join_another_group(model: Model) -> None:
    own = _group_number(model)
    other = next(i for i, s in enumerate(model.sections) if s.type == SHT_GROUP and i != own)
    model.sections[other].content += model.sections[own].content[-8:]
    del model.sections[own].content[-8:]


def _join_both(model: Model) -> None:
    own = _group_number(model)
    other = next(i for i, s in enumerate(model.sections) if s.type == SHT_GROUP and i != own)
    model.sections[other].content += model.sections[own].content[-8:]


def _other_member(model: Model) -> None:
    model.sections[_group_number(model)].content[4:8] = (1).to_bytes(4, "little")


def _more_members(model: Model) -> None:
    model.sections[_group_number(model)].content += (1).to_bytes(4, "little")


def _other_signature(model: Model) -> None:
    model.sections[_group_number(model)].info += 1


def _other_flags(model: Model) -> None:
    model.sections[_group_number(model)].content[0] ^= 1


def _no_flag(model: Model) -> None:
    model.sections[_grouped_table(model)].flags &= ~SHF_GROUP


@pytest.mark.parametrize(
    "spoil",
    [
        _leave_group,
        _half_leave_group,
        _join_another_group,
        _join_both,
        _other_member,
        _more_members,
        _other_signature,
        _other_flags,
        _no_flag,
    ],
)
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_the_groups_of_an_annotated_object_count(spoil: Spoil, compiler: str, made: Objects, tmp_path: Path) -> None:
    original, result = _annotated(made, tmp_path, "inline_two", compiler)
    model = Model(result)
    relaid = model.dump()
    assert prove_annotation(original, relaid) > 1
    spoil(model)
    with pytest.raises(VerificationError):
        prove_annotation(original, model.dump())


@pytest.mark.parametrize("name", [".llvm_addrsig", ".llvm.call-graph-profile"])
def test_the_tables_of_llvm_follow_the_symbols(name: str, made: Objects, tmp_path: Path) -> None:
    original, result = _annotated(made, tmp_path, "clang_tables", "clang")
    section = Model(result).section(name)
    start, size = section.offset, section.size
    assert size
    for at in range(start, start + size):
        spoilt = bytearray(result)
        spoilt[at] ^= 1
        with pytest.raises(VerificationError):
            prove_annotation(original, bytes(spoilt))
