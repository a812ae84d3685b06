"""Reporting: one `ImageReport` value, and a renderer for each form it can take."""
