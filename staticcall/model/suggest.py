"""What somebody may have meant by a name that does not exist."""

from collections.abc import Iterable


def nearest(wanted: str, names: Iterable[str]) -> list[str]:
    """Up to three of the names that look most like the wanted one, the likeliest first."""
    from difflib import get_close_matches  # noqa: PLC0415 - only for mistakes

    return get_close_matches(wanted, sorted(set(names)), n=3, cutoff=0.7)


def suggestion(wanted: str, names: Iterable[str], *, otherwise: str = "check the spelling") -> str:
    """The advice for a name that is none of some others; `otherwise` is that where none of them looks like it."""
    near = nearest(wanted, names)
    return f"did you mean {' or '.join(near)}?" if near else otherwise
