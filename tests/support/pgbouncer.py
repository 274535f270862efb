"""A real PgBouncer in transaction mode before the tests' PostgreSQL.

    with pgbouncer(postgres_url, pool_size=2) as pooled_url:
        database = await Database.open(pooled_url, pooler="transaction")

It refuses root, so it runs as whom PostgreSQL would run as.
"""

import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.engine import make_url

from tests.support.debian import Program, debian_program
from tests.support.server import free_port
from tests.support.services import LOOPBACK, _directory_for, _unprivileged_user
from tests.support.waiting import eventually_sync

_START_WITHIN_S = 20.0
_CONFIGURATION = """
[databases]
* = host={host} port={port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen_port}
unix_socket_dir =
{access}
pool_mode = transaction
default_pool_size = {pool_size}
max_client_conn = 500
ignore_startup_parameters =
"""


@contextmanager
def pgbouncer(postgres_url: str, *, pool_size: int, users: Mapping[str, str] | None = None) -> Iterator[str]:
    """The URL by which `postgres_url`'s database is reached through it: over `pool_size` connections at most.

    `users` are who may come in, with their passwords; None is everybody, without one.

    It takes no parameter of a connection that it does not track: as a strict operator runs it.
    """
    location = make_url(postgres_url)
    program = debian_program("pgbouncer", packages=("pgbouncer", "libevent-2.1-7", "libc-ares2"))
    user = _unprivileged_user()
    port = free_port()
    with _directory_for(user) as folder:
        access = "auth_type = any"
        if users is not None:
            known = folder / "users"
            known.write_text("".join(f'"{name}" "{password}"\n' for name, password in users.items()))
            access = f"auth_type = scram-sha-256\nauth_file = {known}"
        text = _CONFIGURATION.format(
            host=location.host, port=location.port, listen_port=port, pool_size=pool_size, access=access
        )
        (folder / "pgbouncer.ini").write_text(text.replace("* =", f"* = user={location.username}"))
        path, environ = _reachable(program, folder) if user else (program.path, program.environ)
        with (folder / "output").open("wb") as output:
            running = subprocess.Popen(
                [path, str(folder / "pgbouncer.ini")],
                env=dict(environ),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                user=user,
                extra_groups=() if user else None,
            )
        try:
            eventually_sync(lambda: running.poll() is not None or _listens(port), within_s=_START_WITHIN_S)
            assert running.poll() is None, (folder / "output").read_text(errors="replace")
            yield location.set(port=port).render_as_string(hide_password=False)
        finally:
            running.kill()
            running.wait(10)


def _reachable(program: Program, folder: Path) -> tuple[str, Mapping[str, str]]:
    """The program where another user may run it: a cache below /root is closed to others, so a copy."""
    if program.root == Path("/"):
        return program.path, program.environ
    shutil.copytree(program.root / "usr", folder / "usr", ignore=shutil.ignore_patterns("share"))
    kept = program.environ["LD_LIBRARY_PATH"].replace(str(program.root), str(folder))
    copied = Path(program.path).relative_to(program.root)
    return str(folder / copied), {**program.environ, "LD_LIBRARY_PATH": kept}


def _listens(port: int) -> bool:
    try:
        with socket.create_connection((LOOPBACK, port), timeout=1):
            return True
    except OSError:
        return False
