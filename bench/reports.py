"""The figures of reports that people open: how much longer HTML takes than JSON, and how large it is."""

from pathlib import Path

from bench.measure import Figure, in_turn, say, tool
from tests.support.kernels import kernel

MEGABYTE = 1 << 20
MOST_SECONDS_BEYOND_JSON = 1.0


def report_figures(folder: Path, rounds: int) -> list[Figure]:
    """Measure and print; gives the figures."""
    vmlinux = kernel("6.12")
    say(f"reports of {vmlinux.name}, {rounds} rounds")
    forms = ("text", "json", "html")
    commands = {form: tool("report", "--format", form, "--output", folder / form, vmlinux) for form in forms}
    runs = in_turn(commands, rounds)
    for form, measured in runs.items():
        size = (folder / form).stat().st_size / MEGABYTE
        say(f"{form:<18} {measured}  peak {measured.peak / MEGABYTE:5.0f} MiB  {size:5.1f} MiB written")
    beyond = runs["html"].median - runs["json"].median
    return [Figure("report --format html: seconds beyond JSON", beyond, MOST_SECONDS_BEYOND_JSON)]
