"""`staticcall schema`: the JSON Schemas of the public forms, and of the settings file."""

from __future__ import annotations

import click

from staticcall.cli.command import Command
from staticcall.cli.options import version_option
from staticcall.pipeline.schemas import SCHEMAS, schema_text

_SETTINGS = "config"


@click.command("schema", cls=Command)
@click.argument("name", type=click.Choice([*SCHEMAS, _SETTINGS]), default="report")
@version_option
def command(name: str) -> None:
    """Print the JSON Schema of a public form.

    Without a name that of the report. The one named config is that of staticcall.toml, for editors that check and
    complete it.

    \b
    Examples:
      staticcall schema
      staticcall schema edits
      staticcall schema config
    """
    if name == _SETTINGS:
        from staticcall.cli.config_schema import config_schema_text  # noqa: PLC0415 - imports every command

        click.echo(config_schema_text(), nl=False)
    else:
        click.echo(schema_text(name), nl=False)
