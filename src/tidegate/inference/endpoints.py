"""The inference routes: HTTP and nothing else. What happens is in `flow.py`."""

from typing import Annotated, Any

from fastapi import APIRouter, Path
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tidegate.http.road import RoadRoute
from tidegate.inference.dependencies import GatewayDep, InferenceCaller
from tidegate.inference.response import RoadResponse
from tidegate.inference.schemas import CHAT, CHAT_ANSWERS, AnthropicModel, AnthropicModels, OpenAIModel, OpenAIModels
from tidegate.inference.wire import ChatRequest
from tidegate.routing.catalogue import Model
from tidegate.routing.plan import plan, usable_models

router = APIRouter(tags=["inference"])
road = APIRouter(tags=["inference"], route_class=RoadRoute)


@road.post("/v1/chat/completions", openapi_extra=CHAT, responses=CHAT_ANSWERS, response_class=Response)
async def chat_completions(caller: InferenceCaller, gateway: GatewayDep) -> Response:
    """OpenAI's chat completions, streamed or not."""
    return RoadResponse(gateway, caller)


@router.get("/v1/models", responses={200: {"model": OpenAIModels | AnthropicModels}})
async def list_models(request: Request, caller: InferenceCaller, gateway: GatewayDep) -> JSONResponse:
    """The models that the caller may name; in Anthropic's form where `anthropic-version` asks for it."""
    models = usable_models(gateway.serving.catalogue, caller)
    if "anthropic-version" in request.headers:
        listed = [_anthropic_model(model.name) for model in models]
        first, last = (listed[0]["id"], listed[-1]["id"]) if listed else (None, None)
        return JSONResponse({"data": listed, "has_more": False, "first_id": first, "last_id": last})
    return JSONResponse({"object": "list", "data": [_openai_model(model.name, model) for model in models]})


@router.get("/v1/models/{model_id:path}", responses={200: {"model": OpenAIModel | AnthropicModel}})
async def get_model(
    model_id: Annotated[str, Path(min_length=1, max_length=256)],
    request: Request,
    caller: InferenceCaller,
    gateway: GatewayDep,
) -> JSONResponse:
    """One model, by the name that callers use."""
    model = plan(gateway.serving.catalogue, model_id, caller).model
    if "anthropic-version" in request.headers:
        return JSONResponse(_anthropic_model(model_id))
    return JSONResponse(_openai_model(model_id, model))


def add_schemas(document: dict[str, Any]) -> None:
    """Puts the bodies that the road validates itself into an OpenAPI document."""
    schema = ChatRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas |= schema.pop("$defs", {})
    schemas["ChatRequest"] = schema


def _openai_model(name: str, model: Model) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": model.attempts[0].upstream.name}


def _anthropic_model(name: str) -> dict[str, Any]:
    return {"type": "model", "id": name, "display_name": name, "created_at": "1970-01-01T00:00:00Z"}
