"""Puts the manual pages into what is built, where `make man` has made them.

Making them takes the program's own dependencies, which a build in isolation does not have. So a source distribution
carries them along, and a wheel that is built from one has them too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PAGES = "build/man"


class ManualPages(BuildHookInterface[Any]):
    """The hook of pyproject.toml."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the pages: at their own place to a source distribution, as what `man` finds to a wheel."""
        if version == "editable":
            return
        for page in sorted(Path(self.root, PAGES).glob("*.1")):
            if self.target_name == "sdist":
                build_data["force_include"][str(page)] = f"{PAGES}/{page.name}"
            else:
                build_data["shared_data"][str(page)] = f"share/man/man1/{page.name}"
