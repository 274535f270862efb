"""`docs/security/asvs.md` has every requirement with what shows it, and what it says of the source is so."""

import ast
import asyncio
import re
import ssl
from collections.abc import Iterator
from pathlib import Path

from tidegate.upstream.transport import UpstreamTransport

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "tidegate"
PAGE = (ROOT / "docs" / "security" / "asvs.md").read_text("utf-8")
INVENTORY = (ROOT / "docs" / "security" / "inventory.md").read_text("utf-8")
VERDICTS = {"holds": "hold", "mended": "are mended", "does not apply": "do not apply", "does not hold": "do not hold"}
# Sections of ASVS 5.0.0, and how many requirements of levels 1 and 2 each has: those of level 3 are its last.
SECTIONS = (
    "1.1:2 1.2:9 1.3:11 1.4:3 1.5:2 2.1:3 2.2:3 2.3:4 2.4:1 3.2:2 3.3:4 3.4:6 3.5:5 3.7:2 4.1:3 4.2:1 "
    "4.3:2 4.4:4 5.1:1 5.2:3 5.3:2 5.4:3 6.1:3 6.2:12 6.3:4 6.4:4 6.5:5 6.6:3 6.8:4 7.1:3 7.2:4 7.3:2 "
    "7.4:5 7.5:2 7.6:2 8.1:2 8.2:3 8.3:1 8.4:1 9.1:3 9.2:4 10.1:2 10.2:2 10.3:4 10.4:11 10.5:5 10.6:2 "
    "10.7:3 11.1:2 11.2:3 11.3:3 11.4:4 11.5:1 11.6:1 12.1:3 12.2:2 12.3:4 13.1:1 13.2:5 13.3:2 13.4:5 "
    "14.1:2 14.2:4 14.3:3 15.1:3 15.2:3 15.3:7 16.1:1 16.2:5 16.3:4 16.4:3 16.5:3 17.1:1 17.2:4 17.3:2"
)
CRYPTOGRAPHY = {"hashlib", "hmac", "secrets", "ssl", "jwt", "cryptography", "joserfc", "authlib", "pwdlib", "argon2"}
# What runs text, or makes objects of bytes as they ask for it.
RUNS = {"eval", "exec", "compile", "__import__", "system", "popen", "getoutput", "create_subprocess_shell"}
# Of an error's own template, which is written in that module.
OWN_FORMATS = {"server/listening.py", "telemetry/logging.py"}
UNPACKS = {"pickle", "marshal", "shelve", "yaml", "dill", "xml", "lxml"}


def _rows() -> Iterator[tuple[str, list[str]]]:
    """Each requirement's id, with the other cells of its row."""
    for line in PAGE.splitlines():
        if match := re.match(r"\| (\d+\.\d+\.\d+) \|", line):
            yield match[1], [cell.strip() for cell in line.strip().strip("|").split("|")[1:]]


def _modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(SOURCE.rglob("*.py")):
        yield str(path.relative_to(SOURCE)), ast.parse(path.read_text("utf-8"))


def _imported(tree: ast.Module) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


def test_every_requirement_of_levels_1_and_2_is_there_once() -> None:
    sections = [one.split(":") for one in SECTIONS.split()]
    wanted = [f"{section}.{n}" for section, count in sections for n in range(1, int(count) + 1)]
    # The standard's own figures: 70 of level 1, 183 of level 2.
    assert len(wanted) == 253
    assert [requirement for requirement, _ in _rows()] == wanted


def test_every_verdict_is_one_and_they_are_counted() -> None:
    given = [cells[1] for _, cells in _rows()]
    assert set(given) == set(VERDICTS)
    told = ", ".join(f"{given.count(verdict)} {words}" for verdict, words in VERDICTS.items())
    assert f"Of {len(given)} requirements {told}." in PAGE


def test_what_holds_names_its_test_and_what_does_not_says_why() -> None:
    for requirement, (words, verdict, _, shown) in _rows():
        assert words
        assert bool(re.search(r"`tests/[\w/]+\.py::test_\w+`", shown)) == (verdict != "does not apply"), requirement
        if verdict == "does not hold":
            assert re.search(rf"\*\*[\d., ]*\b{re.escape(requirement)}\b[\d., ]*\*\*", PAGE), requirement


def test_every_place_is_there() -> None:
    places = {place for _, (_, _, cell, _) in _rows() for place in re.findall(r"`([^`]+)`", cell)}
    assert len(places) > 50
    assert not [place for place in places if not (SOURCE / place).exists()]


def test_the_inventory_names_every_module_that_uses_cryptography() -> None:
    table = INVENTORY.partition("## Cryptography")[2].partition("\n### ")[0]
    named = set(re.findall(r"`([\w/]+\.py)`", table))
    assert named == {path for path, tree in _modules() if _imported(tree) & CRYPTOGRAPHY}


def test_the_source_evaluates_nothing_and_starts_no_shell() -> None:
    for path, tree in _modules():
        assert not _imported(tree) & UNPACKS, path
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
            is_of_re = isinstance(node.func, ast.Attribute) and ast.unparse(node.func) == "re.compile"
            assert called not in RUNS or is_of_re, f"{path}:{node.lineno}"
            assert "shell" not in {keyword.arg for keyword in node.keywords}, f"{path}:{node.lineno}"
            # A format that does not stand here may be a caller's; `self` has a method of that name.
            if called in ("format", "format_map") and isinstance(node.func, ast.Attribute) and path not in OWN_FORMATS:
                of = node.func.value
                assert isinstance(of, ast.Constant) or ast.unparse(of) == "self", f"{path}:{node.lineno}"


def test_no_hash_that_is_broken_protects_anything() -> None:
    for path, tree in _modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("hashlib.md5", "hashlib.sha1", "hashlib.new"):
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert given.get("usedforsecurity") == "False", f"{path}:{node.lineno}"


def test_nothing_that_protects_comes_of_random() -> None:
    assert {path for path, tree in _modules() if "random" in _imported(tree)} == {
        "http/context.py",
        "server/arbiter.py",
        "server/worker.py",
        "storage/pipeline.py",
        "storage/pipeline_cluster.py",
        "telemetry/tracing.py",
    }


def test_what_the_gateway_calls_by_tls_is_1_2_at_least() -> None:
    context = asyncio.run(UpstreamTransport(keepalive_s=1)._secure())
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    weak = [cipher["name"] for cipher in context.get_ciphers() if re.search("NULL|EXP|RC4|3DES|MD5", cipher["name"])]
    assert not weak
