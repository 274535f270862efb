"""What metrics give to endpoints."""

from typing import Annotated

from fastapi import Depends
from starlette.requests import Request

from tidegate.telemetry.metrics.exposition import Exposition


def get_exposition(request: Request) -> Exposition:
    exposition: Exposition = request.state.exposition
    return exposition


ExpositionDep = Annotated[Exposition, Depends(get_exposition)]
