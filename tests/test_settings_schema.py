"""The schema of staticcall.toml: it allows what the program takes, and nothing else."""

from __future__ import annotations

import json
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from staticcall.cli.command import settings_of_command
from staticcall.cli.commands import COMMANDS, QUICK, WITH_SETTINGS
from staticcall.cli.main import command_named
from staticcall.cli.settings import SHARED, Setting, defaults_from, line_of, settings_of, why_not
from staticcall.cli.texts import SETTINGS_EXAMPLE
from staticcall.errors import UsageError
from tests.support.settings import good
from tests.support.tool import schema


def bad(setting: Setting) -> list[Any]:
    """Values that it does not take."""
    values: list[Any] = [
        1.5,
        0,
        -1,
        "",
        {"key": 3},
        [3],
        [[]],
        {"key": ""},
        {"a=b": "c"},
        1 << 70 if setting.kind != "count" else 0,
    ]
    if setting.kind != "flag":
        values += [True, [True]]
    if setting.kind == "choice" or (setting.kind == "count" and setting.choices):
        values += ["nobody", 7, ["nobody"]]
    return values


SETTABLE = [
    (command, setting)
    for command in COMMANDS
    for setting in settings_of_command(command_named(command)).values()
    if not why_not(command, setting.name)
]


def test_the_commands_that_take_settings_are_those_with_something_to_set() -> None:
    assert {command for command, _ in SETTABLE} == set(WITH_SETTINGS)


@pytest.mark.parametrize("name", sorted({*COMMANDS} - {*WITH_SETTINGS}))
def test_a_table_for_a_command_without_settings_is_unknown(name: str, tmp_path: Path) -> None:
    path = tmp_path / "staticcall.toml"
    path.write_text(f"[{name}]\nshell = 'bash'\n")
    assert not jsonschema.Draft202012Validator(schema("config")).is_valid(tomllib.loads(path.read_text()))
    with pytest.raises(UsageError, match=f"unknown name {name}"):
        defaults_from(str(path), "report", settings_of_command(command_named("report")))


@pytest.mark.parametrize(("command", "setting"), SETTABLE, ids=lambda case: getattr(case, "name", case))
def test_the_schema_and_the_program_agree(command: str, setting: Setting, tmp_path: Path) -> None:

    validator = jsonschema.Draft202012Validator(schema("config"))
    settings = settings_of_command(command_named(command))
    for value in (good(setting), *bad(setting)):
        path = tmp_path / "staticcall.toml"
        path.write_text(f"[{command}]\n{setting.name} = {as_toml(value)}\n")
        document = tomllib.loads(path.read_text())
        try:
            taken = setting.key in defaults_from(str(path), command, settings)
        except UsageError:
            taken = False
        assert taken is validator.is_valid(document), value
        assert taken is (value == good(setting)), value


def as_toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {as_toml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    return json.dumps(value)


def test_what_is_for_all_commands_is_an_option_of_several_with_one_meaning() -> None:
    properties = schema("config")["properties"]
    assert set(properties) >= set(SHARED)
    for name in SHARED:
        owners = [properties[command]["properties"][name] for command in COMMANDS if _has(properties, command, name)]
        assert len(owners) > 1
        assert [{**owner, "description": ""} for owner in owners] == [{**properties[name], "description": ""}] * len(
            owners
        )


def _has(properties: Any, command: str, name: str) -> bool:
    return command in properties and name in properties[command]["properties"]


@pytest.mark.parametrize("name", QUICK)
def test_a_quick_command_and_the_same_by_click_have_the_same_settings(name: str) -> None:
    quick = settings_of(import_module(f"staticcall.cli.{name}").OPTIONS)
    clicked = settings_of_command(command_named(name))
    assert {name: _as_text(setting) for name, setting in quick.items()} == {
        key: setting for key, setting in clicked.items() if key not in ("version", "no-config")
    }


def _as_text(setting: Setting) -> Setting:
    return setting._replace(kind="text") if setting.kind == "key" else setting


def test_the_example_of_the_manual_is_one() -> None:

    jsonschema.validate(tomllib.loads(SETTINGS_EXAMPLE), schema("config"))


@pytest.mark.parametrize(
    ("text", "place", "line"),
    [
        ("a = 1\n[t]\na = 2 # x\n", ("a",), 1),
        ("a = 1\n[t]\na = 2 # x\n", ("t", "a"), 3),
        ("a = 1\n[t] # x\na = 2 # x\n", ("t",), 2),
        ("[t.u]\n'a' = 1", ("t", "u", "a"), 2),
        ('t . u."a" = 1', ("t", "u", "a"), 1),
        ("t = {a = 1}", ("t", "a"), None),
        ('x = """\na = 1\n"""\na = 2', ("a",), None),
    ],
)
def test_a_line_is_told_only_where_it_is_plain(text: str, place: tuple[str, ...], line: int | None) -> None:
    tomllib.loads(text)
    assert line_of(text, place) == line
