"""Reporting: one `ImageReport` value, and a renderer for each form it can take."""

from staticcall.report.build import build_report

__all__ = ["build_report"]
