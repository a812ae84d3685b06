"""The types of C functions: as a person writes them, and whether a compiler takes two of them for one.

Whatever the type data calls it, a type here is a small tree. Its text keeps the names of typedefs; its comparison looks
through them. Structures, unions and enumerations are known by their tags, as to a compiler within one source file.
Source of the rules: C17, 6.2.7 and 6.7.6.3, and gcc where the standard leaves the choice to it.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Final, NamedTuple, Protocol, Union

from staticcall.model.form import Word

# No function anybody wrote comes near; type data that leads in circles does.
DEEPEST: Final = 80
MOST_NODES: Final = 2000
# A name takes as long as one node for each so many characters.
NAME_PER_NODE: Final = 64
_LONGEST_TEXT: Final = 400


class Void:
    """No value."""


class BasicKind(Word):
    """What an arithmetic type holds."""

    INTEGER = "integer"
    FLOAT = "float"
    OTHER = "other"


class Basic(NamedTuple):
    """An arithmetic type: its name as in the type data, its size in bytes."""

    name: str
    size: int
    kind: BasicKind


class Pointer(NamedTuple):
    """A pointer, or with another mark a reference of C++."""

    to: "CType"
    mark: str = "*"


class Qualified(NamedTuple):
    """A type with one of const, volatile, restrict and _Atomic."""

    qualifier: str
    of: "CType"


class Typedef(NamedTuple):
    """Another name of a type."""

    name: str
    of: "CType"


class Tagged(NamedTuple):
    """A struct or union. One without a tag is known by `alias`, the name of its innermost typedef, and its members.

    `size` is in bytes, None where the type data only has a declaration. `members` are the names of members.
    """

    kind: str
    name: str
    size: int | None
    alias: str = ""
    members: tuple[str, ...] = ()


class Enumeration(NamedTuple):
    """An enum. `signed` is None where the type data does not say. One without a tag is known as a struct is."""

    name: str
    size: int
    signed: bool | None
    alias: str = ""
    members: tuple[str, ...] = ()


class Array(NamedTuple):
    """An array, or a vector of the processor; `length` is None where it is not known."""

    of: "CType"
    length: int | None
    vector: bool = False


class Function(NamedTuple):
    """A function's type; one without a prototype, `int f()`, says nothing of its parameters."""

    result: "CType"
    parameters: "tuple[CType, ...]"
    variadic: bool = False
    prototyped: bool = True


CType = Union[  # noqa: UP007 - names in quotes do not take the operator
    Void, Basic, Pointer, Qualified, Typedef, Tagged, Enumeration, Array, Function
]


class ResultKind(Word):
    """What a function returns, as far as a call that becomes a nop or clears %eax depends on it."""

    VOID = "void"
    INTEGER = "integer"
    POINTER = "pointer"
    OTHER = "other"


class Prototype:
    """The type of a function, out of type data that has all of it."""

    def __init__(self, function: Function) -> None:
        self.function: Final = function

    def declared(self, name: str = "") -> str:
        """The declaration of a function of this type in C: `int name(struct task_struct *, long)`."""
        text = _declare(self.function, name)
        return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 3] + "..."

    def agrees(self, other: "Prototype") -> bool:
        """Whether a C compiler takes the two types as compatible; like there, this is not transitive."""
        return compatible(self.function, other.function)

    @property
    def bare(self) -> bool:
        """Whether it takes and returns nothing."""
        return self.result is ResultKind.VOID and not self.function.parameters and not self.function.variadic

    @cached_property
    def result(self) -> ResultKind:
        """The kind of the result."""
        return _result_kind(self.function.result)


class TypeHash(NamedTuple):
    """What kCFI stores of a function's type: equal for equal types."""

    value: int


class TypeSource(Protocol):
    """Type data of one kind."""

    @property
    def name(self) -> str:
        """What people call the data, `BTF` for instance."""
        ...

    @property
    def hint(self) -> str:
        """What would let it know more, empty where nothing would."""
        ...

    def type_of(self, name: str, address: int) -> Prototype | TypeHash | None:
        """The type of the function with this symbol at this linked address, None where it is not known.

        `address` is 0 for a function that is only declared. Raises `MalformedError` for damaged type data.
        """
        ...


def _bare(type_: CType) -> tuple[CType, frozenset[str]]:
    """A type without typedefs, and its qualifiers; those of an array are its elements'."""
    qualifiers = set()
    while isinstance(type_, Typedef | Qualified):
        if isinstance(type_, Qualified):
            qualifiers.add(type_.qualifier)
        type_ = type_.of
    if isinstance(type_, Array) and qualifiers:
        of = type_.of
        for qualifier in sorted(qualifiers):
            of = Qualified(qualifier, of)
        return type_._replace(of=of), frozenset()
    return type_, frozenset(qualifiers)


def compatible(one: CType, other: CType) -> bool:
    """Whether two types are compatible, qualifiers included."""
    bare, qualifiers = _bare(one)
    other_bare, other_qualifiers = _bare(other)
    return qualifiers == other_qualifiers and _compatible_bare(bare, other_bare)


def _compatible_bare(one: CType, other: CType) -> bool:
    if isinstance(one, Enumeration) != isinstance(other, Enumeration):
        return _is_underlying(one, other) if isinstance(one, Enumeration) else _is_underlying(other, one)
    check = _CHECKS.get(type(one))
    return type(one) is type(other) and (check is None or check(one, other))


def _is_underlying(enumeration: CType, other: CType) -> bool:
    """Whether the other type is the integer that gcc takes for the enumeration."""
    assert isinstance(enumeration, Enumeration)
    if not isinstance(other, Basic):
        return False
    return any(
        _spelling(other.name) == _UNDERLYING.get((enumeration.size, signed))
        for signed in ((True, False) if enumeration.signed is None else (enumeration.signed,))
    )


def _spelling(name: str) -> tuple[str, ...]:
    """The words of an arithmetic type's name in one order, those that change nothing left out."""
    words = sorted(name.split())
    if len(words) > 1 and not {"char", "float", "double"} & set(words):
        words = [word for word in words if word not in ("int", "signed")] or ["int"]
    return ("int",) if words == ["signed"] else ("int", "unsigned") if words == ["unsigned"] else tuple(words)


_UNDERLYING: Final = {
    (1, True): ("char", "signed"),
    (1, False): ("char", "unsigned"),
    (2, True): ("short",),
    (2, False): ("short", "unsigned"),
    (4, True): ("int",),
    (4, False): ("int", "unsigned"),
    (8, True): ("long",),
    (8, False): ("long", "unsigned"),
}


def _same_basic(one: Basic, other: Basic) -> bool:
    return _spelling(one.name) == _spelling(other.name) and one.size == other.size


def _same_pointer(one: Pointer, other: Pointer) -> bool:
    return one.mark == other.mark and compatible(one.to, other.to)


def _same_tag(one: Tagged, other: Tagged) -> bool:
    sizes = one.size is None or other.size is None or one.size == other.size
    return sizes and one._replace(size=0) == other._replace(size=0)


def _same_enumeration(one: Enumeration, other: Enumeration) -> bool:
    return one._replace(signed=None) == other._replace(signed=None)


def _same_array(one: Array, other: Array) -> bool:
    lengths = one.length is None or other.length is None or one.length == other.length
    return lengths and one.vector == other.vector and compatible(one.of, other.of)


def _same_function(one: Function, other: Function) -> bool:
    if not compatible(_value(one.result), _value(other.result)):
        return False
    if not (one.prototyped and other.prototyped):
        return all(function.prototyped <= _as_promoted(function) for function in (one, other))
    return (
        one.variadic == other.variadic
        and len(one.parameters) == len(other.parameters)
        and all(
            compatible(_value(mine), _value(yours))
            for mine, yours in zip(one.parameters, other.parameters, strict=True)
        )
    )


def _as_promoted(function: Function) -> bool:
    """Whether a call that knows no parameters passes them as this function takes them."""
    return not function.variadic and all(_promoted(parameter) for parameter in function.parameters)


def _promoted(type_: CType) -> bool:
    bare, _ = _bare(type_)
    if isinstance(bare, Basic):
        return bare.size >= 4 and bare.name != "float"
    return not isinstance(bare, Enumeration) or bare.size >= 4


def _value(type_: CType) -> CType:
    """What is left of a parameter's or result's type: values have no qualifiers but _Atomic, arrays become pointers."""
    bare, qualifiers = _bare(type_)
    if isinstance(bare, Array) and not bare.vector:
        return Pointer(bare.of)
    if isinstance(bare, Function):
        return Pointer(bare)
    return Qualified(_ATOMIC, bare) if _ATOMIC in qualifiers else bare


_ATOMIC: Final = "_Atomic"
_CHECKS: Final[dict[type, Callable[..., bool]]] = {
    Basic: _same_basic,
    Pointer: _same_pointer,
    Tagged: _same_tag,
    Enumeration: _same_enumeration,
    Array: _same_array,
    Function: _same_function,
}


def _result_kind(type_: CType) -> ResultKind:
    bare, _ = _bare(type_)
    if isinstance(bare, Void):
        return ResultKind.VOID
    if isinstance(bare, Pointer):
        return ResultKind.POINTER
    # %eax and what is cleared with it hold no more than 8 bytes.
    if isinstance(bare, Enumeration) or (isinstance(bare, Basic) and bare.kind is BasicKind.INTEGER):
        return ResultKind.INTEGER if bare.size <= 8 else ResultKind.OTHER
    return ResultKind.OTHER


def _declare(type_: CType, inner: str) -> str:
    """The type around what is declared, from the inside out as C's declarators are."""
    match type_:
        case Pointer(to, mark):
            around = isinstance(_unqualified(to), Function) or _is_array(to)
            return _declare(to, f"({mark}{inner})" if around else mark + inner)
        case Qualified(qualifier, of) if isinstance(_unqualified(of), Pointer):
            return _declare(of, f"{qualifier} {inner}".rstrip())
        case Qualified(qualifier, of):
            return f"{qualifier} {_declare(of, inner)}"
        case Array(of, length, vector):
            if vector:
                return f"__attribute__((vector_size({(length or 0) * _size(of)}))) {_declare(of, inner)}"
            return _declare(of, f"{inner}[{'' if length is None else length}]")
        case Function(result):
            return _declare(result, f"{inner}({_parameters(type_)})")
    name = _name(type_)
    return f"{name} {inner}" if inner else name


def _unqualified(type_: CType) -> CType:
    while isinstance(type_, Qualified):
        type_ = type_.of
    return type_


def _is_array(type_: CType) -> bool:
    bare = _unqualified(type_)
    return isinstance(bare, Array) and not bare.vector


def _size(type_: CType) -> int:
    bare, _ = _bare(type_)
    return bare.size if isinstance(bare, Basic) else 1


def _name(type_: Void | Basic | Typedef | Tagged | Enumeration) -> str:
    if isinstance(type_, Tagged):
        return f"{type_.kind} {type_.name or '{...}'}"
    if isinstance(type_, Enumeration):
        return f"enum {type_.name or '{...}'}"
    if isinstance(type_, Basic):
        return _USUAL.get(_spelling(type_.name), type_.name)
    return "void" if isinstance(type_, Void) else type_.name


# As people write what compilers call `long unsigned int`.
_USUAL: Final = {
    _spelling(name): name
    for name in (
        *("unsigned char", "short", "unsigned short", "unsigned int", "long", "unsigned long"),
        *("long long", "unsigned long long", "unsigned __int128"),
    )
}


def _parameters(function: Function) -> str:
    names = [_declare(parameter, "") for parameter in function.parameters]
    if function.variadic:
        names.append("...")
    return ", ".join(names) or ("void" if function.prototyped else "")
