"""What a route may ask of its caller, and that it hangs on the route object."""

import uuid
from collections.abc import Iterator

import pytest
from fastapi import APIRouter, Depends
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from msgspec import structs

from tidegate.auth.dependencies import Caller, RequireScope, UserCaller, get_caller, get_user_caller
from tidegate.auth.principal import Principal
from tidegate.errors import PermissionDenied

USER = Principal(
    workspace_id=uuid.uuid4(), user_id=uuid.uuid4(), role="member", scopes=frozenset({"inference", "usage"})
)
KEY = Principal(workspace_id=uuid.uuid4(), key_id=uuid.uuid4(), key_prefix="abcdefgh", user_id=uuid.uuid4())


async def test_a_signed_in_user_passes_where_a_key_does_not() -> None:
    assert await get_user_caller(USER) is USER
    with pytest.raises(PermissionDenied, match="not an API key"):
        await get_user_caller(KEY)


@pytest.mark.parametrize(
    ("caller", "is_one"),
    [
        (structs.replace(USER, role="admin"), True),
        (USER, False),
        (structs.replace(KEY, role="admin"), False),
        (KEY, False),
    ],
    ids=["an admin", "a member", "a key of an admin", "a key of nobody"],
)
def test_an_admin_is_one_in_person_alone(caller: Principal, is_one: bool) -> None:
    assert caller.is_signed_in_admin is is_one


async def test_a_scope_that_is_missing_is_named() -> None:
    assert await RequireScope("usage")(USER) is USER
    with pytest.raises(PermissionDenied, match=r"This API key lacks the scope 'usage'"):
        await RequireScope("usage")(KEY)
    with pytest.raises(PermissionDenied, match=r"This account lacks the scope 'manage'"):
        await RequireScope("manage")(USER)


def test_what_a_route_requires_can_be_read_from_the_route() -> None:
    router = APIRouter(dependencies=[Depends(RequireScope("manage"))])

    @router.get("/things")
    async def things(caller: Caller) -> None: ...

    @router.get("/own")
    async def own(caller: UserCaller) -> None: ...

    def calls(dependant: Dependant) -> Iterator[object]:
        for inner in dependant.dependencies:
            yield inner.call
            yield from calls(inner)

    found = {route.path: list(calls(route.dependant)) for route in router.routes if isinstance(route, APIRoute)}
    assert all(RequireScope("manage") in required for required in found.values())
    assert get_caller in found["/things"]
    assert get_user_caller in found["/own"]
