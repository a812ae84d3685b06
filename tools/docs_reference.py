"""The reference of the site, made of what the code says: nothing of it is written twice.

`GENERATED` maps the name in a page's `<!-- generated: NAME -->` to what writes the text, in Markdown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from inspect import getdoc
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import click

from staticcall.cli.command import grouped
from staticcall.cli.config_schema import config_schema, config_schema_text
from staticcall.cli.found import settings_file
from staticcall.cli.main import cli
from staticcall.cli.settings import UNSETTABLE
from staticcall.errors import ExitCode
from staticcall.model.findings import FINDINGS, IN_MEMORY, FindingKind
from staticcall.model.reasons import REASONS
from staticcall.report.json import SCHEMAS, schema_text

_ROOT: Final = Path(__file__).resolve().parents[1]
_FOLDER: Final = "reference/schemas"


def schema_files() -> Mapping[str, str]:
    """The JSON Schemas by their paths in the site."""
    texts = {name: schema_text(name) for name in SCHEMAS} | {"config": config_schema_text()}
    return {f"{_FOLDER}/{name}.schema.json": text for name, text in texts.items()}


# ---- commands ----


def _commands() -> str:
    context = click.Context(cli, info_name="staticcall", **cli.context_settings)
    parts = ["## staticcall { #staticcall }", *_command(cli, context)]
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        parts += [f"## {name}", *_command(command, click.Context(command, info_name=name, parent=context))]
    return "\n\n".join(parts)


def _command(command: click.Command, context: click.Context) -> Iterator[str]:
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"```text\n{context.command_path} {usage}\n```"
    for text in (command.help, command.epilog):
        yield from _prose(text or "")
    for title, options in grouped(command, context).items():
        yield _table((title.lower(), "what it does"), [_option(option, context) for option in options])
    if isinstance(command, click.Group):
        names = command.list_commands(context)
        links = [(f"[`{name}`](#{name})", _short(command.get_command(context, name))) for name in names]
        yield _table(("command", "what it does"), links)


def _prose(text: str) -> Iterator[str]:
    """A help text: paragraphs, and behind click's mark what is preformatted."""
    for paragraph in re.split(r"\n\s*\n", re.sub(r"^ {4}", "", text, flags=re.MULTILINE).strip()):
        lines = paragraph.strip("\n").split("\n")
        if lines[0].strip() != "\b":
            yield _escaped(" ".join(line.strip() for line in lines))
            continue
        lines = lines[1:]
        if lines and lines[0].endswith(":"):
            yield f"**{_escaped(lines.pop(0).rstrip(':'))}**"
        if lines and all(line.startswith("  ") for line in lines):
            yield "```text\n" + "\n".join(line[2:] for line in lines) + "\n```"
        elif lines:
            yield _escaped(" ".join(line.strip() for line in lines))


def _short(command: click.Command | None) -> str:
    assert command is not None
    return _escaped(command.get_short_help_str(limit=1000))


def _option(option: click.Option, context: click.Context) -> tuple[str, str]:
    record = option.get_help_record(context)
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    assert record is not None
    value = "" if option.is_flag or option.count else f" `{option.make_metavar(context)}`"
    return names + value, _escaped(" ".join(record[1].split()))


# ---- tables ----


def _exit_codes() -> str:
    rows = [(f"`{code.value}`", f"`{code.name}`", _escaped(code.meaning)) for code in ExitCode]
    return _table(("exit code", "in `staticcall.errors`", "what it says"), rows)


def _reasons() -> str:
    return _table(("reason", "what it says of the site"), [(f"`{code}`", _escaped(REASONS[code])) for code in REASONS])


def _findings(kinds: Mapping[str, FindingKind]) -> str:
    rows = [
        (f"`{code}`", ", ".join(kind.severities), _escaped(kind.meaning), _escaped(kind.advice))
        for code, kind in kinds.items()
    ]
    return _table(("finding", "severity", "what it means", "what to do"), rows)


def _schemas() -> str:
    parts = []
    for name in SCHEMAS:
        schema = json.loads(schema_text(name))
        parts.append(f"## {name}")
        parts.append(
            f"{_escaped(schema.get('description', ''))} Schema: [`{name}.schema.json`](schemas/{name}.schema.json)."
        )
        parts.extend(_objects(schema))
    return "\n\n".join(parts)


def _configuration() -> str:
    """What stands above the tables of the settings file, and then each table: the options of one command."""
    schema = config_schema()
    tables = {name: value for name, value in schema["properties"].items() if "properties" in value}
    shared = {name: value for name, value in schema["properties"].items() if name not in tables}
    parts = ["## For all commands", _properties({"properties": shared, "required": shared})]
    for name, table in tables.items():
        parts += [f"## [{name}]", _properties(table | {"required": table["properties"]})]
    return "\n\n".join(parts)


def _unsettable() -> str:
    return _table(("option", "why not"), [(f"`--{name}`", _escaped(why)) for name, why in UNSETTABLE.items()])


def _objects(schema: Mapping[str, Any]) -> Iterator[str]:
    """A table of the properties of the form itself, and one for each of its parts that has some."""
    whole = {"": schema, **schema.get("$defs", {})}
    for part, value in whole.items():
        if "properties" not in value:
            continue
        if part:
            yield f"**{part}** {_escaped(value.get('description', ''))}".rstrip()
        yield _properties(value)


def _properties(schema: Mapping[str, Any]) -> str:
    """One row for each property of an object."""
    required = set(schema.get("required", ()))
    rows = []
    for key, kind in schema["properties"].items():
        presence = "" if key in required else "Not always there. "
        rows.append((f"`{key}`", _kind(kind), _escaped(presence + kind.get("description", ""))))
    return _table(("property", "type", "what it is"), rows)


def _kind(value: Mapping[str, Any]) -> str:
    """A property's type in few words."""
    if "$ref" in value:
        return str(value["$ref"]).rpartition("/")[2]
    if "const" in value:
        return f"`{json.dumps(value['const'])}`"
    if "enum" in value:
        return ", ".join(f"`{json.dumps(word)}`" for word in value["enum"])
    for several in ("anyOf", "oneOf"):
        if several in value:
            return " or ".join(_kind(one) for one in value[several])
    kinds = value.get("type", "any")
    words = [kinds] if isinstance(kinds, str) else kinds
    if "array" in words and "items" in value:
        return f"array of {_kind(value['items'])}"
    if words == ["object"] and "properties" in value:
        return f"object with {', '.join(f'`{name}`' for name in value['properties'])}"
    if words == ["object"] and isinstance(value.get("additionalProperties"), Mapping):
        return f"table of {_kind(value['additionalProperties'])}"
    return " or ".join(words)


# ---- the README's tables ----


def _section(title: str) -> Callable[[], str]:
    """A section of the README without its heading; what is said there is not said again here."""

    def text() -> str:
        readme = (_ROOT / "README.md").read_text(encoding="utf-8")
        found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## )", readme, re.MULTILINE | re.DOTALL)
        assert found is not None, f"the README has a section {title!r}"
        return found[1].strip()

    return text


# ---- Python ----


# ---- Markdown ----


def _escaped(text: str) -> str:
    """Text in Markdown that stays what it is, also in a table, and without HTML of its own; backquotes mean code."""
    parts = re.split(r"(`[^`]+`)", text.replace("\n", " "))
    for index in range(0, len(parts), 2):
        plain = re.sub(r"([\\`*_{}\[\]|#])", r"\\\1", parts[index])
        parts[index] = plain.replace("&", "&amp;").replace("<", "&lt;")
    return "".join(parts)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


GENERATED: Final[Mapping[str, Callable[[], str]]] = MappingProxyType(
    {
        "commands": _commands,
        "configuration-place": lambda: " ".join(part for part in (getdoc(settings_file) or "").split("\n\n")[1:]),
        "configuration": _configuration,
        "exit-codes": _exit_codes,
        "findings": lambda: _findings(FINDINGS),
        "findings-in-memory": lambda: _findings(IN_MEMORY),
        "policies": _section("Policies"),
        "python": lambda: "::: staticcall.api",
        "reasons": _reasons,
        "refusals": _section("What it refuses"),
        "schemas": _schemas,
        "unsettable": _unsettable,
    }
)
