"""SARIF logs, held against the official schema."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema

from tests.support.tool import Json, staticcall

_SCHEMA = Path(__file__).parents[1] / "fixtures" / "sarif-2.1.0.schema.json"


@cache
def _validator() -> jsonschema.Draft202012Validator:
    schema = json.loads(_SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())


def parse_sarif(text: str) -> Json:
    """The one run of a log that the schema accepts, and in which rules are what results say."""
    log = json.loads(text)
    _validator().validate(log)
    (run,) = log["runs"]
    assert isinstance(run, dict)
    rules = run["tool"]["driver"]["rules"]
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
    return run


def sarif(*arguments: str | Path, code: int = 0) -> Json:
    """The run that a report makes."""
    outcome = staticcall("report", "--format", "sarif", "--fail-on", "never", *arguments)
    assert outcome.code == code, outcome.err
    return parse_sarif(outcome.out)


def notes_on_sites(run: Json) -> list[dict[str, Any]]:
    """The results that are about sites and their verdicts."""
    return [result for result in run["results"] if "verdict" in result["properties"]]
