"""Asks the advisory database of the Python package index for each pinned package, by pip-audit.

Ends with 0 where every package was looked up and none has a known vulnerability, 1 where one has, and 3 where some
could not be looked up, and so nothing is known of them. Installs and resolves nothing: the lock says what there is.
"""

import json
import subprocess
import sys
from typing import Any

_LOCKS = ("requirements/serve.txt", "requirements/weights.txt")
_COMMAND = (sys.executable, "-m", "pip_audit", "--require-hashes", "--disable-pip", "--progress-spinner", "off")


def main() -> int:
    arguments = [part for lock in _LOCKS for part in ("-r", lock)]
    done = subprocess.run([*_COMMAND, "--format", "json", *arguments], capture_output=True, text=True, check=False)
    try:
        report = json.loads(done.stdout)
    except ValueError:
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        report = {"dependencies": [{"name": "every package", "skip_reason": reason}]}
    code, lines = verdict(report)
    print("\n".join(lines))
    return code


def verdict(report: dict[str, Any]) -> tuple[int, list[str]]:
    """The exit code and what to say of pip-audit's report."""
    packages = report["dependencies"]
    unknown = [package for package in packages if "skip_reason" in package]
    lines = [
        f"{package['name']} {package['version']}: {flaw['id']}; mended in {', '.join(flaw['fix_versions']) or 'none'}"
        for package in packages
        for flaw in package.get("vulns", ())
    ]
    if lines:
        return 1, lines
    if unknown:
        of_all = f"{len(unknown)} of {len(packages)}"
        return 3, [
            f"NOT AUDITED: {of_all} packages could not be looked up ({unknown[0]['skip_reason']}).",
            "An index that mirrors packages need not mirror advisories: run `make audit` where the public one answers.",
        ]
    return 0, [f"{len(packages)} packages, none with a known vulnerability."]


if __name__ == "__main__":
    sys.exit(main())
