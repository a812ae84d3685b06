"""What all commands have in common: options in groups, and defaults from a settings file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import click
from click.shell_completion import CompletionItem

from staticcall.cli.commands import WITH_SETTINGS
from staticcall.cli.found import settings_file
from staticcall.cli.quick import NO_CONFIG
from staticcall.cli.settings import Setting, defaults_from, long_name, tell

_COLUMN = 30
_FILE = "staticcall.settings_file"

# Whatever is in no group is the command's own and comes first.
OWN: Final = "Options"
GROUPS: Final[Mapping[str, tuple[str, ...]]] = {
    "Sites and keys": ("policy", "line", "key", "scan", "table", "target"),
    "Other files": ("system-map", "debug-file", "debug-dir", "vmlinux", "modules", "relocs"),
    "Output": (
        *("output", "output-dir", "in-place", "dry-run", "format", "no-pager"),
        *("fail-on", "fail-on-change", "verbose", "quiet"),
    ),
    "General": ("jobs", "dask", "config", "no-config", "version", "help"),
}


class Count(click.types.IntParamType):
    """A number of 1 or more; where it has to be one of `choices`, they complete."""

    def __init__(self, choices: tuple[str, ...] = ()) -> None:
        self.choices = choices

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number; what it has to be besides, the command says."""
        number: int = super().convert(value, param, ctx)
        if number < 1:
            self.fail(f"{number} is not a number of 1 or more.", param, ctx)
        return number

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002 - the signature is click's
        param: click.Parameter,  # noqa: ARG002 - as above
        incomplete: str,
    ) -> list[CompletionItem[str]]:
        """The numbers that begin so."""
        return [CompletionItem(choice) for choice in self.choices if choice.startswith(incomplete)]


class Command(click.Command):
    """A command that takes its defaults from a settings file, and shows its options in groups."""

    def __init__(self, *args: Any, **values: Any) -> None:
        super().__init__(*args, **values)
        if self.name not in WITH_SETTINGS:
            return
        no_config = click.Option(
            [*NO_CONFIG.names, NO_CONFIG.key],
            is_flag=True,
            is_eager=True,  # so that the other options find the defaults
            expose_value=False,
            callback=_read_settings,
            help=NO_CONFIG.help,
        )
        self.params.append(no_config)

    def get_short_help_str(self, limit: int = 80) -> str:
        """The first sentence; a shell shows it whole beside the command."""
        return super().get_short_help_str(limit)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, group by group."""
        groups = [
            (title, [record for option in options if (record := option.get_help_record(ctx))])
            for title, options in grouped(self, ctx).items()
        ]
        # All help begins in one column.
        width = min(max(len(names) for _, records in groups for names, _ in records), _COLUMN)
        for title, records in groups:
            with formatter.section(title):
                formatter.write_dl([(names.ljust(width), text) for names, text in records], col_max=_COLUMN)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; says where its defaults are from, where that is wanted."""
        path = ctx.meta.get(_FILE)
        if path is not None:
            tell(path, verbose=bool(ctx.params.get("verbose")))
        return super().invoke(ctx)


def _read_settings(ctx: click.Context, _: click.Parameter, no_config: bool) -> None:
    # What is completed is not run, and a file given by name counts instead of one found.
    if no_config or ctx.resilient_parsing or ctx.params.get("config") is not None:
        return
    name = ctx.command.name or ""
    settings = settings_of_command(ctx.command)
    path = settings_file()
    if path is not None:
        ctx.default_map = defaults_from(path, name, settings)
        ctx.meta[_FILE] = path


def grouped(command: click.Command, ctx: click.Context) -> dict[str, list[click.Option]]:
    """The options of a command under the titles of their groups, in order; empty groups are left out."""
    titles = {name: title for title, names in GROUPS.items() for name in names}
    groups: dict[str, list[click.Option]] = {title: [] for title in (OWN, *GROUPS)}
    for option in command.get_params(ctx):
        if isinstance(option, click.Option) and not option.hidden:
            groups[titles.get(long_name(option.opts), OWN)].append(option)
    for title, names in GROUPS.items():
        groups[title].sort(key=lambda option: names.index(long_name(option.opts)))
    return {title: options for title, options in groups.items() if options}


def settings_of_command(command: click.Command) -> dict[str, Setting]:
    """All options of a command by their long names, as a settings file would have them."""
    options = [param for param in command.params if isinstance(param, click.Option)]
    return {setting.name: setting for setting in map(_setting_of, options)}


def _setting_of(option: click.Option) -> Setting:
    choices: tuple[str, ...] = ()
    kind = "text"
    if option.is_flag:
        kind = "flag"
    elif isinstance(option.type, click.Choice):
        kind, choices = "choice", tuple(map(str, option.type.choices))
    elif isinstance(option.type, Count):
        kind, choices = "count", option.type.choices
    elif isinstance(option.type, click.Path):
        kind = "path"
    pairs = option.multiple and "=" in (option.metavar or "")
    name = long_name(option.opts)
    return Setting(name, option.name or name, kind, option.help or "", choices, option.multiple, pairs)
