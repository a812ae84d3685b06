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
# What a build runs by the thousand; see `staticcall.cli.quick`.
QUICK = ("report", "annotate")
