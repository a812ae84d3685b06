"""The names of the commands, in the order in which one uses them."""

COMMANDS = (
    "report",
    "explain",
    "diff",
    "patch",
    "annotate",
    "verify",
    "revert",
    "extract",
    "allow-list",
    "check-memory",
    "schema",
    "completion",
)
# Those with an option that a settings file may give; the others print what the program knows by itself.
WITH_SETTINGS = COMMANDS[:-2]
# What a build runs by the thousand; see `staticcall.cli.quick`.
QUICK = ("report", "annotate")
