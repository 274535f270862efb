"""The public keys of access tokens, for whoever verifies them elsewhere."""

from fastapi import APIRouter, Response
from pydantic import BaseModel

from tidegate.auth.dependencies import AccessTokensDep

router = APIRouter(tags=["accounts"])


class JsonWebKey(BaseModel):
    """A public Ed25519 key (RFC 8037, 2)."""

    kty: str
    crv: str
    x: str
    kid: str
    use: str
    alg: str


class JsonWebKeySet(BaseModel):
    keys: list[JsonWebKey]


@router.get("/.well-known/jwks.json")
async def jwks(response: Response, tokens: AccessTokensDep) -> JsonWebKeySet:
    """The keys that verify access tokens (RFC 7517, 5): none where a secret signs them, as by default."""
    response.headers["Cache-Control"] = "public, max-age=300"
    return JsonWebKeySet.model_validate(tokens.keys.jwks())
