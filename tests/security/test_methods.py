"""A method that a path has no route for is a 405 that names those it has, for whoever asks.

It fails where a route with a parameter takes a plain path beside it for one of its own: `/api/things/{thing_id}` takes
`DELETE /api/things/all`, and calls `all` a wrong id. Such a parameter needs a form: `{thing_id:uuid}`.
"""

from collections import defaultdict
from typing import Final

from tests.security.attacked import Attacked
from tests.security.routes import routes

METHODS: Final = {"GET", "POST", "PUT", "PATCH", "DELETE"}


async def test_every_method_that_a_plain_path_has_not_is_a_405_that_names_those_it_has(attacked: Attacked) -> None:
    known: dict[str, set[str]] = defaultdict(set)
    for route in routes():
        if "{" not in route.path:
            known[route.path].add(route.method)
    assert known["/api/limits/key-policies"] == {"GET", "PUT"}
    for path, has in known.items():
        for method in METHODS - has:
            answer = await attacked.call(method, path)
            assert answer.status_code == 405, f"{method} {path}: {answer.status_code} {answer.text}"
            assert answer.json()["error"]["code"] == "method_not_allowed"
            assert set(answer.headers["allow"].split(", ")) == has, f"{method} {path}"


async def test_an_id_that_is_none_is_not_there_and_one_of_any_spelling_is_one(attacked: Attacked) -> None:
    for wrong in ("all", "key-policies-2", "00000000-0000-0000-0000-00000000000g"):
        assert (await attacked.call("DELETE", f"/api/limits/{wrong}", by="admin")).status_code == 404
    made = await attacked.call(
        "POST", "/api/limits", by="admin", json={"scope": "key", "meter": "requests", "window": "day", "amount": 5}
    )
    assert made.status_code == 201, made.text
    for spelling in (made.json()["id"].upper(), made.json()["id"].replace("-", "")):
        changed = await attacked.call("PATCH", f"/api/limits/{spelling}", by="admin", json={"amount": 6})
        assert changed.status_code == 200, changed.text
    assert (await attacked.call("DELETE", f"/api/limits/{made.json()['id']}", by="admin")).status_code == 204
