"""E-mail as routes ask for it."""

from typing import Annotated

from fastapi import Depends
from starlette.requests import Request

from tidegate.mail.post import Post


def get_post(request: Request) -> Post:
    post: Post = request.state.post
    return post


PostDep = Annotated[Post, Depends(get_post)]
