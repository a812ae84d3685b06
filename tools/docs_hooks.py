"""What mkdocs calls while it builds the site: pages say `<!-- generated: NAME -->` where the code has the text.

The texts are those of `tools.docs_reference`. A name that is not there, or one that no page asks for, ends the build.
The schemas become files of the site, so that links to them are checked as any others.
"""

from __future__ import annotations

import re
from typing import Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from tools.docs_reference import GENERATED, schema_files

_MARK: Final = re.compile(r"^<!-- generated: ([a-z-]+) -->$", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the schemas, and see that each generated text has its place."""
    for path, text in schema_files().items():
        files.append(File.generated(config, path, content=text))
    asked = {name for file in files.documentation_pages() for name in _MARK.findall(file.content_string)}
    if asked != set(GENERATED):
        raise PluginError(f"generated texts and the pages that ask for them differ: {sorted(asked ^ set(GENERATED))}")
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 - mkdocs' own
    """Put the generated texts where the page asks for them."""
    return _MARK.sub(lambda mark: GENERATED[mark[1]](), markdown)
