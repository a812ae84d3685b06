"""`staticcall schema`: the JSON Schemas of the public forms."""

from __future__ import annotations

import click

from staticcall.cli.options import version_option
from staticcall.pipeline.schemas import SCHEMAS, schema_text


@click.command("schema")
@click.argument("name", type=click.Choice(list(SCHEMAS)), default="report")
@version_option
def command(name: str) -> None:
    """Print the JSON Schema of one of the public forms, without a name that of the report."""
    click.echo(schema_text(name), nl=False)
