"""What a tree's report passes over is looked at less closely, and still refused where the closer look refuses it."""

from __future__ import annotations

import pytest

from staticcall.errors import StaticcallError
from staticcall.read.object import is_sound, parse_object
from tests.support.object_mutations import hostile
from tests.support.objects import Objects
from tests.support.toolchain import Compiler


@pytest.mark.parametrize(
    ("name", "compiler"), [("calls-kernel", "gcc"), ("inline_one", "clang"), ("two_keys", "gcc")], ids=lambda one: one
)
def test_nothing_damaged_passes_the_quick_look_and_not_the_close_one(
    made: Objects, name: str, compiler: Compiler
) -> None:
    good = made(name, compiler).read_bytes()
    assert is_sound(good), "a sound object needs no closer look"
    passed = 0
    for what, bad in hostile(good):
        try:
            sound = is_sound(bad)
        except StaticcallError:
            continue
        if sound:
            passed += 1
            assert parse_object(bad).symtab, what
    assert passed, "some fields do not matter"


def test_what_is_cut_off_does_not_pass_the_quick_look(made: Objects) -> None:
    good = made("calls-kernel").read_bytes()
    for size in range(64, len(good)):
        try:
            assert not is_sound(good[:size]), size
        except StaticcallError:
            continue
