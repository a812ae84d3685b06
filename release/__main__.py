"""A release from its first check to the command that would upload it, and no further.

    python -m release              all of it; pip and pipx take what staticcall needs from the index
    python -m release --dist DIR   what is made goes there, by default to dist/

Nothing is tagged and nothing is uploaded, ever: the last lines are the commands that would. The exit code is 0 where
they could be run now, and 1 where something stands in the way, which is listed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from release import build, changelog, checks, environment, sbom
from release.commands import ReleaseError, python, run

ROOT: Final = Path(__file__).parents[1]

_TESTS: Final = ("tests/test_architecture.py", "tests/test_report.py")


class _Steps:
    """Says what is done, and how long it took."""

    def __init__(self) -> None:
        self._begun = time.monotonic()

    def done(self, what: str) -> None:
        """The last step is over, and this is what it came to."""
        now = time.monotonic()
        _say(f"  {now - self._begun:5.1f} s  {what}")
        self._begun = now


def main() -> None:
    """Run the whole, and say what is missing."""
    parser = argparse.ArgumentParser(prog="python -m release", description=__doc__.partition("\n")[0])
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="where to put what is made (dist/)")
    options = parser.parse_args()
    try:
        sys.exit(_release(options.dist))
    except ReleaseError as error:
        sys.exit(f"release: {error}")


def _release(folder: Path) -> int:
    version = checks.version_of(ROOT)
    _say(f"staticcall {version}, a dry run")
    steps = _Steps()
    missing = list(checks.problems(ROOT))
    steps.done(f"tree, version and changelog: {f'{len(missing)} in the way' if missing else 'ready'}")
    with tempfile.TemporaryDirectory() as scratch:
        made = build.publish(_make(version, Path(scratch), steps), folder)
    for file in made:
        _say(f"  {file.stat().st_size:>9,} bytes  {file.name}")
    _say_what_would_follow(version, made)
    for problem in missing:
        _say(f"in the way: {problem}")
    return 1 if missing else 0


def _make(version: str, scratch: Path, steps: _Steps) -> tuple[Path, ...]:
    epoch = checks.commit_time(ROOT)
    made = build.build(ROOT, _new(scratch / "made"), epoch)
    steps.done("wheel and source distribution built from the tree")
    again = build.unpack(made.sdist, scratch / "source")
    build.require_same(made, build.build(again, _new(scratch / "again"), epoch), "when it is built from the sdist")
    steps.done("built again from the source distribution: the same bytes")
    python("-m", "twine", "check", "--strict", *made)
    steps.done("twine accepts the metadata")
    _test(again)
    steps.done("the unpacked source distribution's tests of its structure and of reports")
    bill = _install(made.wheel, version, scratch, steps)
    for python_version, interpreter in environment.interpreters(ROOT):
        other = environment.Environment(scratch / python_version, interpreter)
        other.install(made.wheel)
        environment.smoke(other.program("staticcall"), ROOT, _new(scratch / f"{python_version}-work"), version)
        steps.done(f"the same with Python {python_version}")
    return (*made, bill)


def _install(wheel: Path, version: str, scratch: Path, steps: _Steps) -> Path:
    """Install as users do, try what was installed, and write the bill of it."""
    locked = environment.Environment(scratch / "locked")
    locked.install("--constraint", environment.pins(ROOT / "requirements.lock", scratch / "pins.txt"), wheel)
    environment.smoke(locked.program("staticcall"), ROOT, _new(scratch / "locked-work"), version)
    steps.done("installed by pip at the locked versions: report, patch, verify, revert")
    bill = scratch / sbom.file_name(version)
    bill.write_text(sbom.make(locked.folder))
    sbom.require_locked(bill.read_text(), ROOT / "requirements.lock")
    steps.done(f"bill of materials: {len(list(sbom.lines(bill.read_text())))} components, each with its licence")
    locked.install(f"{wheel}[fast]")
    run(locked.program("python"), "-c", "import lzma_mt")
    steps.done("the extra fast")
    ran = environment.pipx_run(wheel, scratch)
    if ran.split()[-1] != version:
        raise ReleaseError(f"pipx ran {ran!r}")
    environment.smoke(environment.pipx_install(wheel, scratch), ROOT, _new(scratch / "pipx-work"), version)
    steps.done("pipx run, and pipx install at the newest versions: the same")
    return bill


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _test(source: Path) -> None:
    """A few test files, run in the unpacked sdist against its own code: they find their fixtures and helpers there."""
    python(
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not kernel", *_TESTS),
        cwd=source,
        env={"PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1"},
    )


def _say_what_would_follow(version: str, files: Sequence[Path]) -> None:
    sections = {section.name: section for section in changelog.sections((ROOT / "CHANGELOG.md").read_text())}
    _say("what a release would do now, and this run does not:")
    if version not in sections:
        _say(f"  CHANGELOG.md   ## Unreleased becomes ## {version} - {time.strftime('%Y-%m-%d', time.gmtime())}")
    _say("  .ci/run        has to pass on that commit: make demo, make test")
    _say(f"  git tag --annotate v{version} --message 'staticcall {version}'")
    _say(f"  git push origin v{version}")
    _say(f"  twine upload {' '.join(file.name for file in files[:2])}")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
