"""Ends subscriptions to changes on a Redis that other tests use too: those of one deployment alone."""

from redis.asyncio import Redis


async def kill_subscriptions(redis_url: str, prefix: str) -> int:
    """CLIENT KILL for each subscriber of this key prefix; how many there were."""
    client = Redis.from_url(redis_url)
    try:
        ours = [each["id"] for each in await client.client_list(_type="pubsub") if each["name"] == prefix]
        return sum([await client.client_kill_filter(_id=each) for each in ours])
    finally:
        await client.aclose()
