"""Markdown as markdown-it-py reads it, with the tables of GitHub."""

from __future__ import annotations

from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token

_READER = MarkdownIt("commonmark", {"html": True}).enable("table")


class Page(NamedTuple):
    """What a reader sees: titles, tables (the header is the first row), items of lists, and all HTML there is."""

    titles: list[str]
    tables: list[list[list[str]]]
    items: list[str]
    html: set[str]
    others: set[str]


def read_page(text: str) -> Page:
    """Parse a document; `others` are the kinds of all tokens."""
    page = Page([], [], [], set(), set())
    tokens = _READER.parse(text)
    for token, inner in zip(tokens, [*tokens[1:], None], strict=True):
        page.others.add(token.type)
        if token.type == "table_open":
            page.tables.append([])
        elif token.type == "tr_open":
            page.tables[-1].append([])
        elif token.type in ("th_open", "td_open") and inner is not None:
            page.tables[-1][-1].append(_seen(inner))
        elif token.type == "heading_open" and inner is not None:
            page.titles.append(_seen(inner))
        elif token.type == "inline":
            page.html.update(child.content for child in token.children or () if child.type == "html_inline")
            page.others.update(child.type for child in token.children or ())
            if tokens[tokens.index(token) - 2].type == "list_item_open":
                page.items.append(_seen(token))
        elif token.type == "html_block":
            page.html.update(token.content.splitlines())
    return page


def _seen(inline: Token) -> str:
    return "".join(child.content for child in inline.children or () if child.type != "html_inline")
