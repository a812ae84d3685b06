"""The rooms in order: read, locate, classify, plan, write, verify, report.

`look` reports on a file, `patch` goes all the way to a proved output, `undo` takes one back, `check` proves a
pair of files. Only this package knows more than one room, and between two steps stands what holds there.
"""
