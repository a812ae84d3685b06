"""What a settings file may hold, and what it says for one command.

    policy = "kernel"          # holds for every command that has the option
    line = 64

    [report]                   # holds for one command; wins over what stands above
    fail-on = "warning"

    [patch]
    pin = ["might_resched"]

    [patch.set]                # options of the form KEY=VALUE are tables
    pv_sched_clock = "native_sched_clock"

The names are those of the long options, and the options are all there is to know about them: what is checked here and
what `staticcall schema config` prints are made from the same `Option`s and click parameters. A command line wins over
the file. The file may lie in a folder that holds somebody else's work, so it can neither name what is written, nor run
anything, nor switch a safeguard off; see `UNSETTABLE`.
"""

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from stat import S_ISREG
from typing import Any, Final, NamedTuple

from staticcall.cli.commands import WITH_SETTINGS
from staticcall.cli.found import VARIABLE
from staticcall.cli.outcome import complain
from staticcall.cli.quick import Option
from staticcall.errors import InputError, UsageError
from staticcall.model.suggest import suggestion

# More than anybody writes by hand.
_MOST_BYTES = 1 << 16
# In a line. Python's reader of TOML takes the square of it in time and memory: gigabytes for one name of 64 KiB.
_MOST_DOTS = 200
# Of a name that nobody meant, and of what is wrong with a file, in characters.
_SHOWN = 80
_SHOWN_WRONG = 200
_MODES = "it says what a run does, which is for the command line"
_OUTPUTS = "it names what is written, which is for the command line"
_SAFEGUARDS = "it switches a safeguard off, which is for the command line"
_RUNS = "it has other programs run, which is for the command line"

# The options that a file does not set, each with the reason; those of `_OWN` in one command only.
UNSETTABLE: Final[Mapping[str, str]] = {
    **dict.fromkeys(("help", "version", "config", "no-config", "dry-run", "list"), _MODES),
    **dict.fromkeys(("output", "output-dir", "in-place"), _OUTPUTS),
    **dict.fromkeys(("force", "force-type", "allow", "strip-signature"), _SAFEGUARDS),
    **dict.fromkeys(("sign-with", "dask"), _RUNS),
}
_OWN: Final[Mapping[tuple[str, str], str]] = {("patch", "edits"): _OUTPUTS, ("patch", "report"): _OUTPUTS}

# What stands above the tables, for every command that has the option.
SHARED: Final = (
    *("policy", "line", "key", "system-map", "debug-file", "debug-dir", "vmlinux", "modules"),
    *("fail-on", "jobs", "verbose", "quiet"),
)


class Setting(NamedTuple):
    """One option as a file may give it; `kind` is that of an `Option`, `name` its long name, `key` its value's."""

    name: str
    key: str
    kind: str
    help: str
    choices: tuple[str, ...] = ()
    multiple: bool = False
    pairs: bool = False


class Settings(NamedTuple):
    """A settings file as it is: where, its text for the numbers of lines, and what it says."""

    path: str
    text: str
    values: Mapping[str, Any]


def why_not(command: str, name: str) -> str | None:
    """Why a file may not set an option, or None where it may."""
    return UNSETTABLE.get(name) or _OWN.get((command, name))


def settings_of(options: Sequence[Option]) -> dict[str, Setting]:
    """The options of a quick command by their long names."""
    return {name: Setting(name, o.key, o.kind, o.help, o.choices) for o in options for name in (long_name(o.names),)}


def long_name(names: Sequence[str]) -> str:
    """The long one of an option's names, without dashes."""
    return max(names, key=len).lstrip("-")


def defaults_from(path: str, command: str, settings: Mapping[str, Setting]) -> dict[str, Any]:
    """What a settings file says for a command, by the keys of the values; relative paths are those from the file.

    `settings` are all options of the command. Tables of other commands are left to those. Raises `UsageError` for
    what cannot be meant, `InputError` for a file that is no TOML or not to be read.
    """
    file = read_settings(path)
    values: dict[str, Any] = {}
    for name, value in file.values.items():
        if name in SHARED:
            if name in settings:
                values[settings[name].key] = _value(file, (name,), settings[name], value)
        elif name not in WITH_SETTINGS:
            raise _unknown(file, (name,), [*SHARED, *(WITH_SETTINGS if isinstance(value, dict) else ())])
        elif not isinstance(value, dict):
            raise _wrong(file, (name,), "a table")
    own = file.values.get(command, {})
    allowed = [name for name in settings if why_not(command, name) is None]
    for name, value in own.items():
        reason = why_not(command, name)
        if name in settings and reason is not None:
            raise _usage(file, (command, name), f"may not set {name} for {command}", reason)
        if name not in settings:
            raise _unknown(file, (command, name), allowed)
        values[settings[name].key] = _value(file, (command, name), settings[name], value)
    return values


def read_settings(path: str) -> Settings:
    """Read a settings file; raises `InputError` and `UsageError`."""
    try:
        return parse(path, _content(path))
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror}", path=path, advice="give another, or --no-config"
        ) from error


def parse(path: str, content: bytes) -> Settings:
    """Read the content of a TOML file; raises `InputError` for what is none, or would take long to read."""
    if len(content) > _MOST_BYTES:
        raise InputError("is too large for a settings file", path=path, advice="give another")
    try:
        text = content.decode("utf-8")
        if any(line.count(".") > _MOST_DOTS for line in text.split("\n")):
            raise RecursionError
        return Settings(path, text, tomllib.loads(text))
    except RecursionError as error:
        raise InputError("is nested too deeply", path=path, advice="see the manual for what it may hold") from error
    except ValueError as error:  # of TOML, of UTF-8, or of a number with thousands of digits
        raise InputError(f"is no TOML: {error!s:.{_SHOWN_WRONG}}", path=path, advice="correct it") from error


def _content(path: str) -> bytes:
    # What is looked at is what is read, whatever happens to the name meanwhile; and a pipe is not waited for.
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        status = os.fstat(number)
        if not S_ISREG(status.st_mode):
            raise UsageError("is not a file", path=path, advice="give a settings file, or --no-config")
        if path != os.environ.get(VARIABLE):
            # Also who made a symbolic link chooses what is read.
            others = {status.st_uid, os.lstat(path).st_uid} - _trusted()
            if others:
                what = f"belongs to another user ({min(others)}), who does not own the working directory either"
                raise UsageError(what, path=path, advice="give it by STATICCALL_CONFIG to use it, or --no-config")
        with open(number, "rb", closefd=False) as stream:
            return stream.read(_MOST_BYTES + 1)
    finally:
        os.close(number)


def _trusted() -> set[int]:
    """Whose files one takes without having been told to.

    Those are one's own, root's, those of whom sudo was called by, and those of the owner of the working directory: in a
    container root works on somebody's checkout.
    """
    caller = os.environ.get("SUDO_UID", "")
    own = os.geteuid()
    users = {own, 0, os.stat(".").st_uid}  # noqa: PTH116 - as above
    return users | ({int(caller)} if own == 0 and caller.isascii() and caller.isdigit() else set())


def _value(file: Settings, place: tuple[str, ...], setting: Setting, value: Any) -> Any:
    """The value as a command takes it; raises `UsageError` where it is none."""
    if setting.pairs:
        if not isinstance(value, dict):
            raise _wrong(file, place, "a table of texts")
        for key, one in value.items():
            if not key or "=" in key:  # `a=b = "c"` would be `--set a=b=c`, another key
                raise _wrong(file, (*place, key), "a name without =")
            if not isinstance(one, str) or not one or "\0" in key + one:
                raise _wrong(file, (*place, key), "a text")
        return tuple(f"{key}={one}" for key, one in value.items())
    if setting.multiple:
        if not isinstance(value, list):
            raise _wrong(file, place, "a list")
        return tuple(_one(file, place, setting, one) for one in value)
    return _one(file, place, setting, value)


def _one(file: Settings, place: tuple[str, ...], setting: Setting, value: Any) -> Any:
    if setting.kind == "flag":
        if not isinstance(value, bool):
            raise _wrong(file, place, "true or false")
        return value
    if setting.kind == "count":
        number = isinstance(value, int) and not isinstance(value, bool)
        if setting.choices and not (number and str(value) in setting.choices):
            raise _wrong(file, place, f"one of {', '.join(setting.choices)}")
        if not number or value < 1:
            raise _wrong(file, place, "a number of 1 or more")
        return value
    if not isinstance(value, str) or not value or "\0" in value:
        raise _wrong(file, place, "a text")
    if setting.kind == "choice" and value not in setting.choices:
        raise _wrong(file, place, f"one of {', '.join(setting.choices)}")
    if setting.kind == "path":
        return os.path.join(os.path.dirname(file.path), value)  # noqa: PTH118, PTH120 - as above
    return value


def _wrong(file: Settings, place: tuple[str, ...], what: str) -> UsageError:
    return _usage(file, place, f"sets {'.'.join(place):.{_SHOWN}} to what it cannot be", f"give {what}")


def _unknown(file: Settings, place: tuple[str, ...], known: Sequence[str]) -> UsageError:
    advice = suggestion(place[-1], known, otherwise=f"known here are {', '.join(known)}")
    table = f" in [{place[0]}]" if len(place) > 1 else ""
    return _usage(file, place, f"has the unknown name {place[-1]:.{_SHOWN}}{table}", advice)


def _usage(file: Settings, place: tuple[str, ...], what: str, advice: str) -> UsageError:
    line = line_of(file.text, place)
    return UsageError(what if line is None else f"line {line} {what}", path=file.path, advice=advice)


_HEADER = re.compile(r"\s*\[([^\[\]]+)\]\s*(?:#.*)?$")
_NAME = re.compile(r"\s*((?:[\w-]+|\"[^\"]*\"|'[^']*')(?:\s*\.\s*(?:[\w-]+|\"[^\"]*\"|'[^']*'))*)\s*=")


def line_of(text: str, place: tuple[str, ...]) -> int | None:
    """The number of the line on which a name is set, or its table begins; None where that is not plain to see."""
    table: tuple[str, ...] = ()
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        header, name = _HEADER.match(line), _NAME.match(line)
        if header:
            table = _parts(header[1])
        if (header and table == place) or (name and (*table, *_parts(name[1])) == place):
            found.append(number)
    return found[0] if len(found) == 1 else None


def _parts(name: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in name.split("."))


def tell(path: str, *, verbose: bool) -> None:
    """Where one wants to know more, say which file was read, as the log says what is done then."""
    if verbose:
        complain(f"info: options from {path}")
