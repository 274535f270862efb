"""`tidegate serve` with stand-ins: the real root over the app of `serve_parts.py` and the model of `serve_model.py`.

With the argument `warm` the server is a fork of the root.
"""

import os
import sys

from tests.support.warm_root import fork_child
from tidegate.server.children import Child, python
from tidegate.server.model_keeper import Backoff
from tidegate.server.root import Parts, run
from tidegate.settings import given_environment, load_settings

# By name: the root imports no app.
_APP = "tests.support.serve_parts"
_MODEL = "tests.support.serve_model"


def _root() -> int:
    environ = given_environment()
    settings = load_settings()
    parts = Parts(
        start=fork_child if sys.argv[1:] == ["warm"] else Child.start,
        server_arguments=(f"--app={_APP}:make_app", f"--prepare={_APP}:prepare"),
        model=python(_MODEL, str(settings.data_dir)),
        backoff=Backoff(first_s=0.05, longest_s=0.2),
        patience_s=0.5,
        comes_within_s=float(os.environ.get("COMES_WITHIN_S", "60")),
    )
    return run(settings, parts, environ=environ)


if __name__ == "__main__":
    sys.exit(_root())
