"""`staticcall completion`: the script by which a shell completes what is typed."""

from __future__ import annotations

import click

from staticcall.cli.command import Command
from staticcall.cli.options import version_option
from staticcall.cli.scripts import SCRIPTS


@click.command("completion", cls=Command)
@click.argument("shell", type=click.Choice(list(SCRIPTS)))
@version_option
def command(shell: str) -> None:
    """Print the script that makes a shell complete commands.

    It completes commands, options, choices and files, and the names of keys: those of the FILE on the command line,
    which may stand behind the cursor. Names with characters that mean something to a shell are left out.

    \b
    To have it in every shell:
      bash: staticcall completion bash > ~/.local/share/bash-completion/completions/staticcall
      zsh:  staticcall completion zsh > ~/.zsh/_staticcall
            and in ~/.zshrc, before compinit: fpath=(~/.zsh $fpath)
      fish: staticcall completion fish > ~/.config/fish/completions/staticcall.fish

    \b
    Examples:
      staticcall completion bash
      staticcall completion zsh
      staticcall completion fish
    """
    click.echo(SCRIPTS[shell], nl=False)
