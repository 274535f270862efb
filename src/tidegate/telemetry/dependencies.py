"""What telemetry gives to endpoints."""

from typing import Annotated

from fastapi import Depends
from starlette.requests import Request

from tidegate.telemetry.health import HealthBoard


def get_health_board(request: Request) -> HealthBoard:
    board: HealthBoard = request.state.health
    return board


HealthBoardDep = Annotated[HealthBoard, Depends(get_health_board)]
