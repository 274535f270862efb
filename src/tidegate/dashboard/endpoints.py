"""The page at `/`: what runs here and how to call it. Public, so it names no model, key or user."""

from html import escape
from string import Template

from fastapi import APIRouter
from fastapi.responses import HTMLResponse
from starlette.requests import Request

from tidegate import __version__
from tidegate.settings import Settings
from tidegate.telemetry.dependencies import HealthBoardDep

router = APIRouter(tags=["dashboard"])

_PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Tidegate</title>
<style>
  :root { color-scheme: light dark; }
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 42rem; margin: 4rem auto; padding: 0 1rem; }
  code, pre { font: 14px/1.5 ui-monospace, monospace; }
  pre { overflow-x: auto; padding: 1rem; border: 1px solid color-mix(in srgb, currentColor 25%, transparent); }
  dt { font-weight: 600; }
  dd { margin: 0 0 .5rem; }
</style>
<h1>Tidegate</h1>
<p>An LLM gateway: one door, in OpenAI's API, before many models.</p>
<dl>
  <dt>State</dt><dd>$state</dd>
  <dt>Version</dt><dd>$version</dd>
  <dt>API</dt><dd><code>$url/v1</code></dd>
  <dt>Health</dt><dd><a href="/health">/health</a></dd>
  $docs
</dl>
<pre>curl -N $url/v1/chat/completions \\
  -H "Authorization: Bearer YOUR_KEY" -H "Content-Type: application/json" \\
  -d '{"model": "NAME", "stream": true, "messages": [{"role": "user", "content": "Hello"}]}'</pre>
<p>Names that a key may use: <code>GET /v1/models</code>. To make a key: <code>tidegate keys create</code>.</p>
</html>
""")
_DOCS = '<dt>Reference</dt><dd><a href="/docs">/docs</a></dd>'
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}


@router.get("/", response_class=HTMLResponse)
async def page(request: Request, board: HealthBoardDep) -> HTMLResponse:
    """What runs here, for a person with a browser."""
    settings: Settings = request.state.settings
    state = board.state if board.is_ready or board.state != "ready" else "starting"
    html = _PAGE.substitute(
        state=escape(state),
        version=escape(__version__),
        url=escape(str(request.base_url).rstrip("/")),
        docs="" if settings.in_production else _DOCS,
    )
    return HTMLResponse(html, headers=_HEADERS)
