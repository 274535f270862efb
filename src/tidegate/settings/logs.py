"""How many lines the requests have."""

from pydantic import Field, NonNegativeFloat

from tidegate.settings.groups import Group


class LogsSettings(Group):
    access_sample: float = Field(
        1, ge=0, le=1, description="the share of healthy requests that have an access line; all others always have one"
    )
    slow_s: NonNegativeFloat = Field(30, description="a request that took longer is not taken for healthy")
