"""staticcall: list, check, rewrite and prove static calls in ELF files."""

__version__ = "0.1.0"
