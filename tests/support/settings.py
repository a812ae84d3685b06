"""Values that the options of a settings file take."""

from __future__ import annotations

from typing import Any

from staticcall.cli.settings import Setting


def good(setting: Setting) -> Any:
    """A value that an option takes."""
    one: Any = setting.choices[0] if setting.choices else {"flag": True, "count": 3}.get(setting.kind, "text")
    one = int(one) if setting.kind == "count" else one
    return {"key": one} if setting.pairs else [one] if setting.multiple else one
