"""The rules that the source keeps, as a program: `faults(source)` says what a file breaks, a line each.

The floors are design.md's: an import runs down the list or along it, never up. What a file may not do beside that is a
function here; `test_architecture.py` runs them all over the repository, and shows each one a bad sample.
"""

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath

MAXIMUM_LINES = 400
MAXIMUM_FUNCTION_LINES = 60
BANNED_NAMES = ("utils", "helpers", "manager", "handler", "process", "data", "core", "common")

# From the ground up. The first pattern that matches a module's name (below `tidegate.`) says its floor.
FLOORS: tuple[tuple[str, int], ...] = (
    (r"$", 0),
    (r"(errors|settings|tls)(\.|$)", 0),
    # Alembic's programs: run by it, imported by nobody, and they must see every table.
    (r"storage\.migrations(\.|$)", 6),
    # What the edge knows of a request: features read it, so it stands beside them.
    (r"http\.context(\.|$)", 2),
    (r"http(\.|$)", 5),
    (r"(\w+\.)*endpoints(\.|$)", 4),
    (r"(storage|telemetry)(\.|$)", 1),
    (r"(routing|admission|ledger|limits|auth|audit|accounts|mail|upstream)(\.|$)", 2),
    (r"inference(\.|$)", 3),
    (r"(app|lifespan)(\.|$)", 5),
    # The pages, which the app includes.
    (r"dashboard(\.|$)", 4),
    (r"(cli|server|check)(\.|$)", 6),
)
# Endpoints take dependencies and contexts from the floor above, which builds them.
_ENDPOINTS_MAY_IMPORT = re.compile(r"tidegate\.http(\.|$)")

# What holds a connection, a loop or a thread: built by the lifespan or by who uses it, never at import.
_CONSTRUCTED_AT_START = re.compile(
    r"FastAPI|Starlette|create_app|load_settings|Settings|create_(async_)?engine|(async_)?sessionmaker"
    r"|(Async)?Client|(Async)?OpenAI|Redis|from_url|(Blocking)?ConnectionPool|(Thread|Process)PoolExecutor"
    r"|CapacityLimiter|(Bounded)?Semaphore|R?Lock|Event|Condition|(Lifo|Priority|Simple)?Queue|Thread|Process|Popen"
)
_MUTABLE_CALLS = re.compile(r"dict|list|set|bytearray|defaultdict|deque|Counter|OrderedDict|Weak(Key|Value)Dictionary")
_MUTABLE_DISPLAYS = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)


@dataclass(frozen=True)
class Source:
    """One file: its path from the repository's root, with `/`, and its text."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @cached_property
    def module(self) -> str:
        """Its dotted name: `src/tidegate/http/__init__.py` is `tidegate.http`."""
        parts = list(PurePosixPath(self.path).with_suffix("").parts)
        if parts[0] == "src":
            parts = parts[1:]
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def of_tidegate(self) -> bool:
        return self.path.startswith("src/")

    @property
    def of_preflight(self) -> bool:
        return self.path.startswith("preflight/")


def faults(source: Source) -> list[str]:
    """Every rule that this file breaks, as `path:line: what`; none for a revision of the schema."""
    if "/migrations/versions/" in source.path:
        return []
    found: list[tuple[int, str]] = []
    for rule in RULES:
        found += rule(source)
    return [f"{source.path}:{line}: {what}" for line, what in sorted(found)]


Found = Iterator[tuple[int, str]]


def floor_of(module: str) -> int | None:
    """The floor of a module of Tidegate, by its dotted name; None where no pattern knows it."""
    below = module.removeprefix("tidegate").removeprefix(".")
    return next((floor for pattern, floor in FLOORS if re.match(pattern, below)), None)


def _imports_go_down(source: Source) -> Found:
    if not source.of_tidegate:
        return
    own = floor_of(source.module)
    if own is None:
        yield 1, f"{source.module} is on no floor: give it one in tests/support/architecture.py"
        return
    endpoints = source.module.endswith(".endpoints")
    for line, imported in _imports(source):
        if imported.partition(".")[0] != "tidegate" or (endpoints and _ENDPOINTS_MAY_IMPORT.match(imported)):
            continue
        target = floor_of(imported)
        if target is not None and target > own:
            yield line, f"{source.module} (floor {own}) imports {imported} (floor {target}): imports only go down"


def _products_stay_apart(source: Source) -> Found:
    if not (source.of_tidegate or source.of_preflight):
        return
    stranger = "preflight" if source.of_tidegate else "tidegate"
    for line, imported in _imports(source):
        if imported.partition(".")[0] == stranger:
            yield line, f"imports {imported}: preflight and tidegate never import each other"


def _imports(source: Source) -> Found:
    """Each imported name, absolute: `from a import b` is `a.b`."""
    package = source.module.split(".")
    if not source.path.endswith("/__init__.py"):
        package = package[:-1]
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            path = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{path}.{alias.name}") for alias in node.names)


def _is_short(source: Source) -> Found:
    lines = len(source.text.splitlines())
    if lines > MAXIMUM_LINES:
        yield lines, f"{lines} lines: a file over {MAXIMUM_LINES} is two ideas"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAXIMUM_FUNCTION_LINES:
                yield node.lineno, f"{node.name} has {length} lines, more than {MAXIMUM_FUNCTION_LINES}"


def _is_well_named(source: Source) -> Found:
    for part in PurePosixPath(source.path).with_suffix("").parts:
        if any(word in BANNED_NAMES for word in part.split("_")):
            yield 1, f"the name {part!r} says nothing: {', '.join(BANNED_NAMES)} are not in the vocabulary"


def _says_what_it_owns(source: Source) -> Found:
    is_test = source.path.startswith("tests/") and not source.path.startswith("tests/support/")
    if source.tree.body and not is_test and not ast.get_docstring(source.tree):
        yield 1, "has no docstring: a module opens with what it owns"


def _settings_alone_read_the_environment(source: Source) -> Found:
    if not source.of_tidegate or source.module in ("tidegate.settings.loading", "tidegate.settings.references"):
        return
    names = ("environ", "environb", "getenv", "getenvb", "putenv", "unsetenv")
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and node.attr in names and _name_of(node.value) == "os":
            yield node.lineno, f"os.{node.attr}: only settings/ reads the environment"
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            yield from ((node.lineno, f"os.{a.name}: only settings/ reads it") for a in node.names if a.name in names)


def _has_no_base_http_middleware(source: Source) -> Found:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Name | ast.Attribute) and _name_of(node) == "BaseHTTPMiddleware":
            yield node.lineno, "BaseHTTPMiddleware leaks the upstream: pure ASGI only"
        elif isinstance(node, ast.ImportFrom | ast.Import):
            if any(alias.name.endswith("BaseHTTPMiddleware") for alias in node.names):
                yield node.lineno, "BaseHTTPMiddleware leaks the upstream: pure ASGI only"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "middleware":
            yield node.lineno, "@app.middleware is BaseHTTPMiddleware: pure ASGI only"


def _does_nothing_at_import(source: Source) -> Found:
    if not (source.of_tidegate or source.of_preflight):
        return
    for statement in _at_import(source.tree.body):
        for node in ast.walk(statement):
            if isinstance(node, ast.Call) and _CONSTRUCTED_AT_START.fullmatch(_name_of(node.func)):
                yield node.lineno, f"{_name_of(node.func)}(…) at import: nothing happens there"
        yield from _mutable_state(statement)
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Global):
            yield node.lineno, f"global {', '.join(node.names)}: a module has no state"


def _at_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run when the module is imported. Functions and classes only define something."""
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or _is_main_guard(statement):
            continue
        if isinstance(statement, ast.If | ast.Try | ast.With | ast.For | ast.While):
            for name in ("body", "orelse", "finalbody"):
                yield from _at_import(getattr(statement, name, []))
            continue
        yield statement


def _is_main_guard(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.If) and "__main__" in ast.unparse(statement.test)


def _mutable_state(statement: ast.stmt) -> Found:
    """A lower-case name for something that can change is state; an upper-case one is a table that nobody changes."""
    if not isinstance(statement, ast.Assign | ast.AnnAssign) or statement.value is None:
        return
    value = statement.value
    if not isinstance(value, _MUTABLE_DISPLAYS) and not (
        isinstance(value, ast.Call) and _MUTABLE_CALLS.fullmatch(_name_of(value.func))
    ):
        return
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    for target in targets:
        if isinstance(target, ast.Name) and not target.id.isupper() and not target.id.startswith("__"):
            yield statement.lineno, f"{target.id} can change: a module has no state"


def _name_of(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


RULES: tuple[Callable[[Source], Found], ...] = (
    _imports_go_down,
    _products_stay_apart,
    _is_short,
    _is_well_named,
    _says_what_it_owns,
    _settings_alone_read_the_environment,
    _has_no_base_http_middleware,
    _does_nothing_at_import,
)
