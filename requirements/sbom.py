"""Writes dist/sbom.cdx.json: what an installation by `make serve` consists of, in CycloneDX 1.6.

Components and hashes come from the lock, by cyclonedx-py; licences and who needs whom from the installed packages. It
holds no time and no random number, so that one lock gives one file. It is validated before it is written.
"""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCKS = (Path("requirements/serve.txt"), Path("requirements/weights.txt"))
TARGET = Path("dist/sbom.cdx.json")
_GENERATOR = (sys.executable, "-W", "ignore", "-m", "cyclonedx_py", "requirements", "-")
_OPTIONS = (
    "--pyproject",
    "pyproject.toml",
    "--mc-type",
    "application",
    "--sv",
    "1.6",
    "--output-reproducible",
    "--no-validate",
)


def main() -> None:
    # Imported here: a second of CPU that the text itself does not need.
    from cyclonedx.schema import SchemaVersion  # noqa: PLC0415
    from cyclonedx.validation.json import JsonStrictValidator  # noqa: PLC0415

    document = written()
    if error := JsonStrictValidator(SchemaVersion.V1_6).validate_str(document):
        sys.exit(f"The bill of materials is not CycloneDX 1.6: {error}")
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(document, "utf-8")
    print(f"Wrote {TARGET}: {len(json.loads(document)['components'])} components.")


def written() -> str:
    """The file's text, from the lock of the working directory."""
    return json.dumps(_document(), indent=2, sort_keys=True) + "\n"


def _document() -> dict[str, Any]:
    locked = "".join(path.read_text("utf-8") for path in LOCKS)
    generated = subprocess.run([*_GENERATOR, *_OPTIONS], input=locked, capture_output=True, text=True, check=True)
    document: dict[str, Any] = json.loads(generated.stdout)
    components: dict[str, dict[str, Any]] = {
        canonicalize_name(component["name"]): component for component in document["components"]
    }
    for component in components.values():
        # Its reference and description are places in the lock, which move; an index's address is whoever's it was.
        component["bom-ref"] = component["purl"]
        component.pop("description", None)
        for reference in component.get("externalReferences", ()):
            reference["url"] = component["purl"]
        if licence := _licence(component["name"]):
            component["licenses"] = [{"license": {"name": licence}}]
    root = document["metadata"]["component"]
    root["bom-ref"] = "tidegate"
    document["dependencies"] = [
        {"ref": root["bom-ref"], "dependsOn": _refs(_direct(), components)},
        *(
            {"ref": component["bom-ref"], "dependsOn": _refs(_required(component["name"]), components)}
            for component in components.values()
        ),
    ]
    document["components"] = sorted(components.values(), key=lambda component: str(component["bom-ref"]))
    return document


def _direct() -> list[str]:
    project = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    return [Requirement(line).name for line in (*project["dependencies"], *extras)]


def _required(name: str) -> list[str]:
    """What a package needs on some platform and with any of its extras: what of it is locked is what counts."""
    try:
        lines = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []
    return [Requirement(line).name for line in lines]


def _licence(name: str) -> str | None:
    try:
        about = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return None
    classifiers = [
        line.rpartition(" :: ")[2] for line in about.get_all("Classifier", []) if line.startswith("License ::")
    ]
    said = about.get_all("License-Expression") or classifiers or about.get_all("License") or []
    written = " AND ".join(said)
    return re.sub(r"\s+", " ", written)[:200].strip() or None


def _refs(names: list[str], components: Mapping[str, Mapping[str, Any]]) -> list[str]:
    known = {str(canonicalize_name(name)) for name in names} & components.keys()
    return sorted(str(components[name]["bom-ref"]) for name in known)


if __name__ == "__main__":
    main()
