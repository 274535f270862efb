"""The command `tidegate`, whose `serve` starts its server by a fork: what `warm_forks` runs for a test.

Its workers are watched for calls that block their loop (`blocking.py`).
"""

import sys

from tests.support.guarded import APP
from tests.support.warm_root import fork_child
from tidegate.cli.main import root
from tidegate.server.root import Parts

if __name__ == "__main__":
    root.main(sys.argv[1:], prog_name="tidegate", obj=Parts(start=fork_child, server_arguments=(f"--app={APP}",)))
