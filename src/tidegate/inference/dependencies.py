"""The road as routes ask for it."""

from typing import Annotated

from fastapi import Depends
from starlette.requests import Request

from tidegate.auth.dependencies import RequireScope
from tidegate.auth.principal import Principal
from tidegate.inference.gateway import Gateway


def get_gateway(request: Request) -> Gateway:
    gateway: Gateway = request.state.gateway
    return gateway


GatewayDep = Annotated[Gateway, Depends(get_gateway)]
InferenceCaller = Annotated[Principal, Depends(RequireScope("inference"))]
