"""What the user asked for, resolved against what the image has."""

import re
from typing import NamedTuple

from staticcall.abi import elf64, static_call, x86
from staticcall.errors import UnsafeError, UsageError
from staticcall.model.form import Form
from staticcall.model.image import NO_NAMES, Image
from staticcall.model.sites import Key, Located, Target, TargetKind
from staticcall.model.suggest import suggestion
from staticcall.model.symbols import Symbol

# What compilers put in front of a function: padding, and the hash of its type.
_NO_FUNCTIONS = ("__pfx_", "__cfi_")
_NULL, _RET0 = "NULL", "RET0"
# What an undefined symbol may be that another object defines as a function.
_MAY_BE_CODE = frozenset({elf64.STT_NOTYPE, elf64.STT_FUNC, elf64.STT_GNU_IFUNC})
_IDENTIFIER = re.compile(r"[A-Za-z_][\w.$]*", re.ASCII)
# Where an indirect branch may lead, so the start of a function whose address is taken.
_ENDBR64 = bytes.fromhex("f30f1efa")
# How far apart the pretended places of functions are that an object does not know.
UNKNOWN_ROOM = 16


class Wishes(NamedTuple):
    """`sets` pairs a key's name with a target's; `bind` patches all that is left; `keys` is a glob on names.

    `pins` names keys whose direct sites stay where they lead for ever.
    """

    sets: tuple[tuple[str, str], ...] = ()
    bind: bool = False
    keys: str | None = None
    forced: frozenset[str] = frozenset()
    pins: tuple[str, ...] = ()


def resolve_sets(image: Image, located: Located, wishes: Wishes) -> tuple[dict[int, Target], tuple[str, ...]]:
    """Map the address of each key that is to be set to its new target.

    Also gives the names of the targets that an object does not know; they get the places behind all that it has.
    Raises `UnsafeError` for unknown and ambiguous names, with the nearest ones there are.
    """
    found: dict[int, Target] = {}
    unknown: dict[str, Target] = {}
    for name, wanted in wishes.sets:
        key = _resolve_key(image, located, name)
        if key.address in found:
            raise UsageError(f"key {key.name} is set twice")
        target = _resolve_target(image, located, key, wanted)
        if target is None:
            target = _elsewhere(image, wanted, len(unknown))
            target = unknown.setdefault(target.name, target)
        found[key.address] = target
    return found, tuple(unknown)


def resolve_pins(image: Image, located: Located, wishes: Wishes) -> tuple[Key, ...]:
    """The keys whose sites are to be pinned, each once; raises `UnsafeError` for unknown and ambiguous names."""
    return tuple(dict.fromkeys(_resolve_key(image, located, name) for name in wishes.pins))


def _elsewhere(image: Image, wanted: str, number: int) -> Target:
    """A function of another object, as the target number `number` of those that this one does not know."""
    assert image.placement is not None, "a linked image has all its functions"
    returns0 = wanted in (_RET0, static_call.RETURN0)
    kind, name = (TargetKind.RET0, static_call.RETURN0) if returns0 else (TargetKind.FUNCTION, wanted)
    if not _IDENTIFIER.fullmatch(name):
        raise UsageError(f"{wanted} is no name of a function")
    return Target(kind, name, image.placement.end + number * UNKNOWN_ROOM)


def _resolve_key(image: Image, located: Located, name: str) -> Key:
    wanted = name.removeprefix(static_call.KEY_PREFIX)
    # An object's addresses are pretended, and nobody knows them.
    by_address = image.placement is None
    matches = [
        key for key in located.keys.values() if wanted == key.name or (by_address and wanted == f"{key.address:#x}")
    ]
    if not matches:
        raise UnsafeError(
            f"there is no key {name}",
            code="unknown-key",
            advice=suggestion(wanted, (key.name for key in located.keys.values())),
        )
    if len(matches) > 1:
        places = ", ".join(image.where(key.address) for key in matches)
        raise UnsafeError(
            f"there are several keys {name}: {places}", code="ambiguous-key", advice=_tell_apart(image, "key")
        )
    return matches[0]


def _resolve_target(image: Image, located: Located, key: Key, wanted: str) -> Target | None:
    """The target of that name, or None where another object has to define it."""
    return0, nop = located.dialect.return0, located.dialect.nop_function if key.live else None
    if wanted == _NULL:
        return Target(TargetKind.NULL, _NULL, nop or 0)
    if wanted == _RET0:
        if return0 is None and image.placement is not None:
            return None
        if return0 is None:
            raise UnsafeError(
                f"the image has no function {static_call.RETURN0}",
                code="no-return0",
                advice="name a function that returns 0",
            )
        return Target(TargetKind.RET0, static_call.RETURN0, return0)
    if wanted == static_call.RETURN0 and return0 is not None:
        return Target(TargetKind.RET0, wanted, return0)
    symbol = _known_elsewhere(image, wanted) or _resolve_function(image, located, wanted)
    if symbol is None:
        return None
    if symbol.address in located.trampolines:
        raise UnsafeError(
            f"{wanted} is a trampoline, which leads on to what its own key says",
            code="target-is-trampoline",
            advice="name the function itself",
        )
    if symbol.address == nop:
        return Target(TargetKind.NULL, _NULL, nop)
    kind = TargetKind.RET0 if symbol.address == return0 else TargetKind.FUNCTION
    return Target(kind, symbol.name, symbol.address)


def _known_elsewhere(image: Image, wanted: str) -> Symbol | None:
    """The undefined symbol of that name in an object."""
    if image.placement is None:
        return None
    places = set(image.placement.undefined.values())
    named = (symbol for symbol in image.symbols.named(wanted) if symbol.type in _MAY_BE_CODE)
    return next((symbol for symbol in named if symbol.address in places), None)


def _resolve_function(image: Image, located: Located, wanted: str) -> Symbol | None:
    if wanted.startswith("0x"):
        if image.placement is not None:
            raise UsageError(f"{wanted} is an address, and an object has none", advice="name a function")
        return _function_at(image, located, wanted)
    symbols = [symbol for symbol in image.symbols.named(wanted) if _is_code(image, symbol)]
    if not symbols and image.placement is not None and not image.symbols.named(wanted):
        return None
    if not symbols:
        raise UnsafeError(
            f"there is no function {wanted}",
            code="unknown-function",
            advice=suggestion(wanted, image.symbols.function_names()),
        )
    addresses = sorted({symbol.address for symbol in symbols})
    if len(addresses) > 1:
        places = ", ".join(image.where(address) for address in addresses)
        raise UnsafeError(
            f"there are several functions {wanted}: {places}",
            code="ambiguous-function",
            advice=_tell_apart(image, "function"),
        )
    return symbols[0]


def _function_at(image: Image, located: Located, wanted: str) -> Symbol:
    try:
        address = int(wanted, 16)
    except ValueError:
        raise UsageError(f"{wanted} is no address") from None
    symbol = image.symbols.at({address}).get(address) or _nameless_function(image, located, address)
    if symbol is None or not _is_code(image, symbol):
        raise UnsafeError(
            f"no function starts at {wanted}", code="unknown-function", advice="give the start of a function"
        )
    return symbol


def _nameless_function(image: Image, located: Located, address: int) -> Symbol | None:
    """What an image without any names shows to be a function: static calls lead there, or it starts as theirs do."""
    if image.name_source != NO_NAMES:
        return None
    functions = {key.slot.value for key in located.keys.values()} - {0}
    known = address in functions
    if not known:
        starts = {start for function in functions if (start := _start(image, function))}
        known = _start(image, address) in starts
    return Symbol(f"{address:#x}", address, 0, elf64.STT_FUNC, elf64.STB_GLOBAL, 0) if known else None


def _start(image: Image, function: int) -> tuple[bool, int] | None:
    """Whether a function starts with endbr64, and what the call leads to that comes first, as all do that are traced.

    None where it starts with neither. A call may have been replaced by a nop; that is 0.
    """
    size = len(_ENDBR64) + x86.CALL_SIZE
    if image.offset_of(function, size) is None:
        return None
    code = image.read_at(function, size)
    marked = code.startswith(_ENDBR64)
    at = len(_ENDBR64) if marked else 0
    first = x86.decode(code[at:], function + at)
    called = first.destination if first.form is Form.CALL else None
    return (marked, called or 0) if marked or called else None


def _is_code(image: Image, symbol: Symbol) -> bool:
    if symbol.type not in (elf64.STT_NOTYPE, elf64.STT_FUNC) or symbol.name.startswith(_NO_FUNCTIONS):
        return False
    if symbol.type == elf64.STT_NOTYPE:
        around = image.symbols.containing(symbol.address)
        if around is not None and around.address != symbol.address:
            return False  # a label inside a function
    segment = image.load_at(symbol.address)
    if segment is None or not segment.flags & elf64.PF_X:
        return False
    section = image.section_at(symbol.address)
    return section is None or section.executable


def _tell_apart(image: Image, what: str) -> str:
    return "give the address" if image.placement is None else f"give each {what} a name of its own"
