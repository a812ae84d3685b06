"""Makes the manual pages for a wheel, so that whoever installs one has them, also from a checkout.

They are made of the commands themselves, which takes what the commands import at once: pyproject.toml has that put
into the environment of a build.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ManualPages(BuildHookInterface[Any]):
    """The hook of pyproject.toml."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the pages to a wheel, at the place where `man` finds them."""
        if version == "editable":
            return
        self._pages = TemporaryDirectory(prefix="staticcall-man-")
        # The tree's own commands, without a cache of their code left in it; pip says by PYTHONPATH where libraries are.
        places = os.pathsep.join(filter(None, (self.root, os.environ.get("PYTHONPATH"))))
        variables = {**os.environ, "PYTHONPATH": places, "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-m", "staticcall.cli.man", self._pages.name]
        subprocess.run(command, cwd=self.root, env=variables, check=True)  # noqa: S603 - this Python, this tree
        for page in sorted(Path(self._pages.name).iterdir()):
            build_data["shared_data"][str(page)] = f"share/man/man1/{page.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002 - hatchling's
        """Remove the pages, which are in the wheel by now."""
        if version != "editable":
            self._pages.cleanup()
