"""The JSON Schema of staticcall.toml, made from the options of the commands."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from staticcall.cli.command import settings_of_command
from staticcall.cli.commands import WITH_SETTINGS
from staticcall.cli.main import command_named
from staticcall.cli.settings import SHARED, Setting, why_not

NAME = "config"


def config_schema() -> dict[str, Any]:
    """The schema as a JSON document."""
    commands = {name: settable(name) for name in WITH_SETTINGS}
    shared: dict[str, Any] = {}
    for name in SHARED:
        # One description for all: what it does to each command, that command's own table says.
        having = [settings[name] for settings in commands.values() if name in settings]
        shared[name] = _schema_of(having[0])
    tables = {name: _table_of(settings, f"Options of staticcall {name}.") for name, settings in commands.items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:staticcall:schema:config:1",
        "title": "staticcall.toml",
        "description": "Defaults for the options of staticcall: for all commands that have them, and by command.",
        "type": "object",
        "properties": shared | tables,
        "additionalProperties": False,
    }


def config_schema_text() -> str:
    """The schema as it is printed."""
    return json.dumps(config_schema(), indent=2) + "\n"


def settable(command: str) -> dict[str, Setting]:
    """The options of a command that a settings file may give, by their names."""
    settings = settings_of_command(command_named(command))
    return {name: setting for name, setting in settings.items() if why_not(command, name) is None}


def _table_of(settings: Mapping[str, Setting], description: str) -> dict[str, Any]:
    return {
        "description": description,
        "type": "object",
        "properties": {name: _schema_of(setting) for name, setting in settings.items()},
        "additionalProperties": False,
    }


def _schema_of(setting: Setting) -> dict[str, Any]:
    one = _one(setting)
    if setting.pairs:
        one = {"type": "object", "propertyNames": {"pattern": "^[^=]+$"}, "additionalProperties": one}
    elif setting.multiple:
        one = {"type": "array", "items": one}
    return {"description": setting.help, **one}


def _one(setting: Setting) -> dict[str, Any]:
    if setting.kind == "flag":
        return {"type": "boolean"}
    if setting.kind == "count":
        return {"enum": [int(choice) for choice in setting.choices]} if setting.choices else _COUNT
    if setting.kind == "choice":
        return {"enum": list(setting.choices)}
    return {"type": "string", "minLength": 1}


_COUNT = {"type": "integer", "minimum": 1}
