"""Integrity: what run-time patching may make of an image's code, and whether a memory image has just that.

`contents` lists every range and its legal bytes, `place` finds the image in memory, `judge` compares. Pure: the bytes
come from an `Image` and a `Core`.
"""
