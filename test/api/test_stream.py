"""One encoded picture for all viewers; who is slow misses some."""

import asyncio
import gc

from edge_perception.api.stream import Broadcast


def number(part):
    return int(part.split(b'X-Stamp-Ns: ')[1].split(b'\r\n')[0])


def test_slow_viewer_gets_the_newest_and_a_fast_one_every_picture():
    async def scenario():
        broadcast = Broadcast()
        fast, slow = broadcast.view(), broadcast.view()
        seen = {}  # in order

        async def watch():
            async for part in fast:
                seen[number(part)] = True

        watching = asyncio.ensure_future(watch())
        waiting = asyncio.ensure_future(anext(slow))
        await asyncio.sleep(0)
        for stamp in range(5):
            broadcast.publish(b'jpeg', stamp)
            while len(seen) <= stamp:
                await asyncio.sleep(0)
            if stamp == 0:
                first = number(await waiting)
        assert broadcast.viewers == 2
        second = number(await anext(slow))
        broadcast.close()
        await watching
        await slow.aclose()
        assert broadcast.viewers == 0
        return seen, first, second

    seen, first, second = asyncio.run(scenario())
    assert list(seen) == [0, 1, 2, 3, 4]
    assert (first, second) == (0, 4)


def test_all_viewers_share_the_bytes_of_a_picture():
    async def scenario():
        broadcast = Broadcast()
        views = [broadcast.view() for _ in range(3)]
        waiting = [asyncio.ensure_future(anext(view)) for view in views]
        await asyncio.sleep(0)
        broadcast.publish(b'x' * 1000, 7)
        parts = [await each for each in waiting]
        for view in views:
            await view.aclose()
        return parts

    parts = asyncio.run(scenario())
    assert parts[0] is parts[1] is parts[2]
    assert b'Content-Length: 1000\r\n' in parts[0]


def test_nothing_is_kept_without_viewers():
    async def scenario():
        broadcast = Broadcast()
        view = broadcast.view()
        waiting = asyncio.ensure_future(anext(view))
        await asyncio.sleep(0)
        broadcast.publish(b'x' * 1000, 7)
        await waiting
        await view.aclose()
        gc.collect()
        return broadcast._part

    assert asyncio.run(scenario()) == b''
