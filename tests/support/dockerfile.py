"""A Dockerfile's steps, run without a container engine: each in a clean directory that stands for the image's root.

    image = Image(folder)
    image.build(Path("deploy/Dockerfile"), context=repository)
    subprocess.Popen(image.command, env=image.environ)

What an engine would add is left out: layers, isolation, the base image's own files. `FROM python:…` gives a directory
with this machine's Python on PATH; absolute paths of the steps are put below the directory; users are made in its own
`etc`. Of the language only what our file says is understood; another word raises `ValueError`.
"""

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_STEP_BOUND_S = 300
_MOVED = re.compile(r"(?<![\w./-])/(opt|src|etc|var/lib/tidegate)(?=[/:\s]|$)")
_NEW_USER = re.compile(r"\b(groupadd|useradd) ")


@dataclass(slots=True)
class _Stage:
    name: str
    workdir: str = "/"
    environment: dict[str, str] = field(default_factory=dict)


class Image:
    """What a build made: `root` is its file system, the rest is what the file says of running it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.root = folder / "root"
        self.user = ""
        self.stop_signal = ""
        self.health_command: list[str] = []
        self._entrypoint: list[str] = []
        self._command: list[str] = []
        self._stage = _Stage("")
        self._interpreter = folder / "python"
        self._interpreter.mkdir()
        base = _python_for_all()
        self.is_for_all_users = base is not None
        (self._interpreter / "python").symlink_to(base or _own_python())

    @property
    def environ(self) -> dict[str, str]:
        """What `ENV` says, below the root, over a machine's least."""
        given = {name: self._below_root(value) for name, value in self._stage.environment.items()}
        return {"PATH": f"{self._interpreter}:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"} | given

    def command(self, *arguments: str) -> list[str]:
        """What the image runs: its entry point and its command, or other arguments."""
        program, *rest = [*self._entrypoint, *(list(arguments) or self._command)]
        found = shutil.which(program, path=self.environ["PATH"])
        assert found is not None, f"{program} is not on the image's PATH"
        return [found, *rest]

    def build(self, dockerfile: Path, *, context: Path) -> None:
        """Runs every step. Raises `CalledProcessError` with what the step printed."""
        for word, rest in _instructions(dockerfile.read_text("utf-8")):
            self._take(word, rest, context)

    def _take(self, word: str, rest: str, context: Path) -> None:
        if word == "FROM":
            self._begin(rest)
        elif word == "WORKDIR":
            self._stage.workdir = rest
            self._at(rest).mkdir(parents=True, exist_ok=True)
        elif word == "ENV":
            for pair in shlex.split(rest):
                name, _, value = pair.partition("=")
                path = self.environ["PATH"]
                self._stage.environment[name] = value.replace("$PATH", path)
        elif word == "COPY":
            self._copy(shlex.split(rest), context)
        elif word == "RUN":
            self._run(rest)
        elif word == "USER":
            self.user = rest
        elif word == "STOPSIGNAL":
            self.stop_signal = rest
        elif word == "HEALTHCHECK":
            self.health_command = json.loads(rest.partition("CMD ")[2])
        elif word == "ENTRYPOINT":
            self._entrypoint = json.loads(rest)
        elif word == "CMD":
            self._command = json.loads(rest)
        elif word not in ("ARG", "VOLUME", "EXPOSE"):
            raise ValueError(f"{word} is not understood here")

    def _begin(self, rest: str) -> None:
        """Stages have one place, one after another: a virtual environment knows where it was made."""
        if self._stage.name:
            self.root.rename(self._folder / f"stage-{self._stage.name}")
        name = rest.partition(" AS ")[2] or "last"
        self._stage = _Stage(name)
        (self.root / "etc").mkdir(parents=True)
        for file in ("passwd", "group", "shadow", "gshadow"):
            (self.root / "etc" / file).touch()

    def _copy(self, words: list[str], context: Path) -> None:
        source_root = context
        if words[0].startswith("--from="):
            source_root = self._folder / f"stage-{words.pop(0).removeprefix('--from=')}"
        *sources, target = words
        for source in sources:
            origin = source_root / source.strip("/")
            place = self._at(target)
            if origin.is_dir():
                shutil.copytree(origin, place, symlinks=True, dirs_exist_ok=True, ignore=_IGNORED)
            else:
                place.mkdir(parents=True, exist_ok=True)
                shutil.copy2(origin, place)

    def _run(self, script: str) -> None:
        (self.root / "opt").mkdir(exist_ok=True)
        script = _NEW_USER.sub(rf"\1 --prefix {self.root} ", self._below_root(script))
        if os.geteuid() != 0:
            # Whoever runs the tests can make no user and give away no file.
            script = re.sub(r"\b(groupadd|useradd) [^&]+&&", "", script)
            script = re.sub(r"--(owner|group) \d+", "", script)
        subprocess.run(
            ["/bin/sh", "-e", "-c", script],
            cwd=self._at(self._stage.workdir),
            env=_way_to_packages() | self.environ,
            check=True,
            timeout=_STEP_BOUND_S,
        )

    def _at(self, path: str) -> Path:
        return (
            self.root / path.strip("/") if path.startswith("/") else self.root / self._stage.workdir.strip("/") / path
        )

    def _below_root(self, text: str) -> str:
        return _MOVED.sub(rf"{self.root}/\1", text)


def _own_python() -> Path:
    return Path(sys._base_executable).resolve()  # type: ignore[attr-defined]


def _python_for_all() -> Path | None:
    """A Python that another user may run too: this one lies in somebody's home, perhaps."""
    for python in (_own_python(), Path("/usr/bin/python3")):
        if python.exists() and all(folder.stat().st_mode & stat.S_IXOTH for folder in (python, *python.parents)):
            asked = [str(python), "-c", "import ensurepip, sys; sys.exit(sys.version_info < (3, 11))"]
            if subprocess.run(asked, capture_output=True, check=False).returncode == 0:
                return python
    return None


def _way_to_packages() -> dict[str, str]:
    """How this machine reaches its package index: certificates, proxies, a mirror."""
    own = re.compile(r"(PYTHON|VIRTUAL_ENV|TIDEGATE_|PYTEST)")
    return {name: value for name, value in os.environ.items() if own.match(name) is None}


_IGNORED = shutil.ignore_patterns("__pycache__")


def _instructions(text: str) -> Iterator[tuple[str, str]]:
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        word, _, rest = line.strip().partition(" ")
        if word:
            yield word, rest.strip()
