"""The public JSON forms, for those who check them."""

from staticcall.report.json import SCHEMAS, schema_text

__all__ = ["SCHEMAS", "schema_text"]
