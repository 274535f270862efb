"""Says on standard output how it was started, then ends as it is told: `rightly`, `badly`, `raising` or `never`."""

import json
import os
import signal
import sys
import time

_LOOKED_AT = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGPIPE, signal.SIGHUP)


def _said() -> dict[str, object]:
    return {
        "arguments": sys.argv[1:],
        "cwd": os.getcwd(),  # noqa: PTH109 - as the system has it
        "variables": sorted(name for name in os.environ if name.startswith("WARM_")),
        "leads_its_session": os.getsid(0) == os.getpid(),
        "signals": [str(signal.getsignal(number)) for number in _LOOKED_AT],
        "descriptors": [int(name) for name in os.listdir("/dev/fd") if _is_open(int(name))],  # noqa: PTH208
        "input": sys.stdin.read(),
    }


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        # The one that the list was read by.
        return False
    return True


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_said()) + "\n")
    match sys.argv[1]:
        case "badly":
            sys.exit("it ends badly")
        case "raising":
            raise RuntimeError("nobody foresaw this")
        case "never":
            while True:
                time.sleep(3600)
