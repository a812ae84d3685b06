"""A JSON report read again, as far as two of them are compared."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from staticcall.errors import MalformedError
from staticcall.model.diff import ImageFacts, SiteFacts, SiteName
from staticcall.model.sites import Policy, PolicyName

_NULL, _ELSEWHERE, _AN_ADDRESS = "NULL", "(what another file says)", "(a function without a name)"
_ADVICE = "give what report --format json or jsonl wrote"


def looks_like_report(head: bytes) -> bool:
    """Whether a file that starts with these bytes is JSON; no ELF file and nothing around one starts like that."""
    return head.lstrip()[:1] == b"{"


def parse_report(text: bytes) -> tuple[list[ImageFacts], Policy | None]:
    """The images of a report in JSON, with its policy, or in JSON Lines, which does not say it.

    Raises `MalformedError` for anything that `report` does not write.
    """
    try:
        document, policy = _documents(text.decode("utf-8")), None
        if len(document) == 1 and "images" in document[0]:
            policy = Policy(PolicyName(document[0]["policy"]["name"]), int(document[0]["policy"]["line"]))
            document = document[0]["images"]
        return [image_facts(image) for image in document], policy
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise MalformedError("is no report", advice=_ADVICE) from error


def _documents(text: str) -> list[Any]:
    lines = text.splitlines()
    try:
        return [json.loads(line) for line in lines if line]
    except ValueError:
        return [json.loads(text)]


def parse_image(text: str) -> ImageFacts:
    """One image, as `render_image` has written it."""
    return image_facts(json.loads(text))


def image_facts(image: Mapping[str, Any]) -> ImageFacts:
    """What is compared of an image; raises `KeyError` or `TypeError` for what is none."""
    seen: Counter[tuple[str, str]] = Counter()
    sites: dict[SiteName, SiteFacts] = {}
    for site in image["sites"]:
        place = site["function"]
        function = _text(site["section"]) if place is None else _text(place).rpartition("+")[0]
        key = _text(site["key"] or "")
        seen[function, key] += 1
        facts = SiteFacts(_text(site["form"]), _text(site["verdict"]), _text(site["reason"]))
        sites[SiteName(function, key, seen[function, key])] = facts
    return ImageFacts(_text(image["path"]), dict(_targets(image["keys"])), sites)


def _targets(keys: Iterable[Mapping[str, Any]]) -> Iterable[tuple[str, str]]:
    """Each key's name and present target; of several keys of one name the later ones are numbered."""
    seen: Counter[str] = Counter()
    for key in keys:
        name, target = _text(key["name"]), key["func"]
        seen[name] += 1
        if target is None:
            target = _NULL if key.get("defined", True) else _ELSEWHERE
        elif _text(target).startswith("0x"):
            target = _AN_ADDRESS
        yield (name if seen[name] == 1 else f"{name}#{seen[name]}"), target


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("no text")
    return value
