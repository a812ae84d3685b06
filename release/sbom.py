"""The software bill of materials: what is installed along with staticcall, each with its version and licence.

`python -m release.sbom [PATH]` writes CycloneDX 1.6 as JSON, by default to `dist/`, of the versions that
`requirements.lock` names. It holds neither a time nor a random number, so the same lock gives the same bytes.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any, Final

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from release.checks import version_of
from release.commands import ReleaseError, python
from release.environment import Environment, locked, pins

ROOT: Final = Path(__file__).parents[1]

Json = dict[str, Any]


def make(environment: Path, root: Path = ROOT) -> str:
    """The bill of an environment that holds staticcall and what it needs, and nothing else; `check` has accepted it."""
    text = compose(environment, root)
    check(text)
    return text


def compose(environment: Path, root: Path = ROOT) -> str:
    """The bill of an environment, as it is."""
    made = python(
        *("-m", "cyclonedx_py", "environment", "--pyproject", root / "pyproject.toml"),
        *("--sv", "1.6", "--output-reproducible", "--output-format", "JSON", "--no-validate", environment),
        env={"SOURCE_DATE_EPOCH": ""},
    )
    document = json.loads(made)
    # hatchling finds the version when it builds, so pyproject.toml does not say it.
    product = document["metadata"]["component"]
    product["version"] = version_of(root)
    product["purl"] = f"pkg:pypi/{product['name']}@{product['version']}"
    known = {canonicalize_name(distribution.name): distribution.metadata for distribution in installed(environment)}
    for component in document["components"]:
        # cyclonedx-py reads the expression and the classifiers; some packages only fill in the older field.
        told = known[canonicalize_name(component["name"])]
        if not component.get("licenses") and "License" in told:
            component["licenses"] = [{"license": {"acknowledgement": "declared", "name": told["License"]}}]
    # Of what only an extra asks for, some is there because something else needs it; the product does not.
    asked = [Requirement(line) for line in known[product["name"]].get_all("Requires-Dist", [])]
    wanted = {canonicalize_name(need.name) for need in asked if not need.marker or need.marker.evaluate({"extra": ""})}
    for entry in document["dependencies"]:
        if entry["ref"] == product["bom-ref"]:
            entry["dependsOn"] = [ref for ref in entry["dependsOn"] if canonicalize_name(ref.split("==")[0]) in wanted]
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def check(text: str) -> None:
    """Raises `ReleaseError` where a component has no licence, or the schema does not accept a bill."""
    unknown = [component["name"] for component in json.loads(text)["components"] if not _licences(component)]
    if unknown:
        raise ReleaseError(f"no licence is known of {', '.join(unknown)}")
    if error := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        raise ReleaseError(f"the bill of materials is not what its schema says: {error}")


def installed(environment: Path) -> Iterator[Distribution]:
    """The distributions in an environment."""
    return iter(distributions(path=[str(path) for path in environment.glob("lib/python*/site-packages")]))


def require_locked(text: str, lock: Path) -> None:
    """Raises `ReleaseError` where a bill has another version than the lock file, or what that does not name."""
    versions = locked(lock)
    for component in json.loads(text)["components"]:
        if versions.get(canonicalize_name(component["name"])) != component["version"]:
            said = f"{component['name']} {component['version']} was installed"
            raise ReleaseError(f"{said}, which {lock.name} does not name; `make lock` renews that")


def lines(text: str) -> Iterator[str]:
    """A bill as one line for each component: name, version, licences."""
    for component in json.loads(text)["components"]:
        yield f"{component['name']:<20} {component['version']:<12} {', '.join(_licences(component))}"


def _licences(component: Json) -> list[str]:
    choices = component.get("licenses", [])
    return [choice.get("expression") or choice["license"].get("id") or choice["license"]["name"] for choice in choices]


def write(path: Path, wheel: Path | None = None) -> str:
    """Install a wheel, or the tree, and what it needs at the locked versions, and write the bill of that."""
    with tempfile.TemporaryDirectory() as folder:
        environment = Environment(Path(folder, "environment"))
        environment.install("--constraint", pins(ROOT / "requirements.lock", Path(folder, "pins.txt")), wheel or ROOT)
        text = make(environment.folder)
    require_locked(text, ROOT / "requirements.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return text


def file_name(version: str) -> str:
    """What the bill of a version is called."""
    return f"staticcall-{version}.cdx.json"


def main() -> None:
    """Write the bill to the path given, and print what it holds."""
    default = ROOT / "dist" / file_name(version_of(ROOT))
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    try:
        text = write(path)
    except ReleaseError as error:
        sys.exit(f"release: {error}")
    sys.stdout.write("".join(f"{line}\n" for line in lines(text)) + f"{path}\n")


if __name__ == "__main__":
    main()
