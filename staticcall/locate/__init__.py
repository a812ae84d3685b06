"""Locating: an `Image` becomes sites, keys and trampolines.

`table` reads the records, `trampolines` and `keys` what they lead to, `scan` finds sites by code alone, and
`reconcile` holds the sources against each other. `dialect` tells which bytes this image's own code uses.
"""
