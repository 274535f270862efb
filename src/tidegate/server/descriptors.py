"""How many files and sockets a process may have open: the usual soft limit of 1024 is less than its connections."""

import resource

MOST = 65536


def raise_descriptor_limit() -> None:
    """Raises this process's soft limit to its hard one, to 65536 at most. Its children have it too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
