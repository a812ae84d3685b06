"""Where the settings file of a project is. Every run asks, so this costs a few stat calls and no import."""

import os
from stat import S_ISREG

NAME = "staticcall.toml"
VARIABLE = "STATICCALL_CONFIG"


def settings_file() -> str | None:
    """The path of the settings file that holds here, or None.

    It is the one that `STATICCALL_CONFIG` names, or else the `staticcall.toml` of the working directory, or of the
    nearest folder above it. The home directory is the last one looked into, the root where that is not on the way.

    One that was found is taken only if it belongs to the user, to root, to who called sudo, or to the owner of the
    working directory, as in a container where root works on somebody's checkout. What somebody else put above it, as
    `/tmp/staticcall.toml`, ends the run with exit code 2; `--no-config` leaves it out.
    """
    named = os.environ.get(VARIABLE)
    if named:
        return named
    try:
        folder = os.getcwd()  # noqa: PTH109 - importing pathlib takes longer than all this
    except OSError:  # somebody removed it
        return None
    home = os.path.realpath(os.environ.get("HOME") or "/")
    while True:
        path = os.path.join(folder, NAME)  # noqa: PTH118 - as above
        if _is_file(path):
            return path
        parent = os.path.dirname(folder)  # noqa: PTH120 - as above
        if folder in (home, parent):
            return None
        folder = parent


def _is_file(path: str) -> bool:
    try:
        return S_ISREG(os.stat(path).st_mode)  # noqa: PTH116 - as above
    except OSError:
        return False
