"""The `openai` package as a user has it, and what went over the wire."""

import time
from typing import Self

import httpx2
import openai
from openai.types.chat import ChatCompletionUserMessageParam


class OfficialClient:
    """It asks again by itself, twice at most. Each try is in `asked_at` and in `statuses`."""

    def __init__(self, api_url: str, api_key: str) -> None:
        self.asked_at: list[float] = []
        self.statuses: list[int] = []
        http = httpx2.AsyncClient(event_hooks={"request": [self._asked], "response": [self._answered]})
        self._client = openai.AsyncOpenAI(base_url=api_url, api_key=api_key, http_client=http)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def say(self, model: str) -> str | None:
        messages: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": "Hello"}]
        answer = await self._client.chat.completions.create(model=model, messages=messages, max_tokens=5)
        return answer.choices[0].message.content

    async def _asked(self, _: httpx2.Request) -> None:
        self.asked_at.append(time.monotonic())

    async def _answered(self, response: httpx2.Response) -> None:
        self.statuses.append(response.status_code)
