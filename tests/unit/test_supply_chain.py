"""The supply chain: every file by its hash, nothing undeclared, a bill of materials that says what is installed."""

import ast
import contextlib
import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
# Each more is somebody else's code with our callers' keys in its memory.
MOST_DIRECT = 38
# Imported by name, and brought in the right version by what is declared.
BROUGHT = {"hiredis": "redis", "pydantic-core": "pydantic"}
_PINNED = re.compile(r"(?P<name>[a-z0-9-]+)==(?P<version>[^\s;]+)( ; .+?)?(?P<hashes>( --hash=sha256:[0-9a-f]{64})+)")


def _project() -> dict[str, list[str]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return {"": project["dependencies"], **project["optional-dependencies"]}


def _declared() -> set[str]:
    return {str(canonicalize_name(Requirement(line).name)) for lines in _project().values() for line in lines}


def _pinned(lock: Path) -> dict[str, str]:
    """Name and version of each requirement; raises where one is anything but a version with its hashes."""
    text = lock.read_text("utf-8").replace("\\\n", " ")
    pins = {}
    for line in filter(None, (re.sub(r"\s+", " ", line).strip() for line in text.splitlines())):
        if line.startswith("#"):
            continue
        pin = _PINNED.fullmatch(line)
        assert pin, f"{lock.name}: this is not one version with its hashes: {line[:80]}"
        pins[pin["name"]] = pin["version"]
    return pins


def _imported() -> set[str]:
    modules = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module)
    packages = metadata.packages_distributions()
    foreign = {name for name in modules if name.partition(".")[0] not in sys.stdlib_module_names | {"tidegate"}}
    return {str(canonicalize_name(dist)) for name in foreign for dist in _distributions(name, packages)}


def _distributions(module: str, packages: Mapping[str, list[str]]) -> list[str]:
    """Those that a module is from: of a namespace's, the ones that hold a file of it."""
    top = module.partition(".")[0]
    found = sorted(set(packages.get(top, [top])))
    place = module.replace(".", "/")
    if len(found) == 1:
        return found
    return [name for name in found if any(str(file).startswith(place) for file in metadata.files(name) or ())]


def _script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "requirements" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_requirement_is_one_version_with_its_hashes(lock: Path) -> None:
    assert _pinned(lock)


@pytest.mark.parametrize(
    "line",
    ["click", "click>=8", "click==8.5.0", "click==8.5.0 --hash=md5:0", "-e .", "git+https://example.com/click", "-r x"],
)
def test_what_is_not_pinned_by_hash_is_a_fault(tmp_path: Path, line: str) -> None:
    (tmp_path / "bad.txt").write_text(line + "\n")
    with pytest.raises(AssertionError, match=r"bad\.txt"):
        _pinned(tmp_path / "bad.txt")


def test_what_is_declared_is_what_is_locked() -> None:
    pins = _pinned(ROOT / "requirements" / "serve.txt")
    for line in (line for lines in _project().values() for line in lines):
        wanted = Requirement(line)
        assert wanted.specifier.contains(pins[str(canonicalize_name(wanted.name))], prereleases=True), line


def test_the_source_imports_nothing_undeclared() -> None:
    imported = _imported()
    assert {"fastapi", "sqlalchemy", "redis"} <= imported
    declared = _declared()
    assert {BROUGHT.get(name, name) for name in imported} <= declared
    assert set(BROUGHT) - declared == set(BROUGHT), "it is declared now: BROUGHT need not name it"


def test_direct_dependencies_are_few_and_each_has_its_reason() -> None:
    page = (ROOT / "docs" / "security" / "dependencies.md").read_text("utf-8")
    rows = [line.strip("| ").split(" | ") for line in page.split("\n## ")[0].splitlines() if line.startswith("| ")]
    listed = {row[0]: row[1:] for row in rows if row[0] != "package"}
    assert set(listed) == _declared()
    assert all(len(cells) == 3 and all(cells) for cells in listed.values())
    assert len(_declared()) <= MOST_DIRECT


def test_the_bill_of_materials_names_all_that_is_locked_and_is_always_the_same(tmp_path: Path) -> None:
    for name in ("requirements", "pyproject.toml", "README.md", "LICENSE"):
        (tmp_path / name).symlink_to(ROOT / name)
    subprocess.run([sys.executable, "requirements/sbom.py"], cwd=tmp_path, check=True, capture_output=True, timeout=100)
    written = (tmp_path / "dist" / "sbom.cdx.json").read_text("utf-8")
    with contextlib.chdir(tmp_path):
        assert _script("sbom").written() == written
    bill = json.loads(written)
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert bill["metadata"]["component"]["name"] == "tidegate"
    assert not {"serialNumber", "timestamp"} & {*bill, *bill["metadata"]}
    locked = _pinned(ROOT / "requirements" / "serve.txt") | _pinned(ROOT / "requirements" / "weights.txt")
    assert {component["name"]: component["version"] for component in bill["components"]} == locked
    assert all(reference["hashes"] for one in bill["components"] for reference in one["externalReferences"])
    needs = {entry["ref"]: entry["dependsOn"] for entry in bill["dependencies"]}
    assert len(needs["tidegate"]) == len(_declared())
    assert f"pkg:pypi/starlette@{locked['starlette']}" in needs[f"pkg:pypi/fastapi@{locked['fastapi']}"]


def test_an_audit_that_found_nobody_to_ask_is_no_pass() -> None:
    verdict = _script("audit").verdict
    clean = {"name": "click", "version": "8.5.0", "vulns": []}
    flawed = {"name": "x", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1"]}]}
    skipped = {"name": "y", "skip_reason": "not found"}
    assert verdict({"dependencies": [clean]}) == (0, ["1 packages, none with a known vulnerability."])
    assert verdict({"dependencies": [clean, flawed, skipped]}) == (1, ["x 1: PYSEC-1; mended in 1.1"])
    code, lines = verdict({"dependencies": [clean, skipped]})
    assert code == 3
    assert lines[0].startswith("NOT AUDITED: 1 of 2")


def test_the_workflow_runs_nobody_elses_action_and_has_no_permissions() -> None:
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        workflow = path.read_text("utf-8")
        assert "\npermissions: {}\n" in workflow
        assert workflow.count("permissions:") == 1
        assert not re.search(r"^\s*(- )?uses:", workflow, re.MULTILINE)
        # What GitHub puts into a script is code; by the environment it is text.
        assert "${{" not in workflow.partition("\njobs:")[2]
