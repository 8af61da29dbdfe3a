"""The threads of a worker process. Decoding, the network and the search release Python's lock, so threads are enough."""
import asyncio
import queue
import threading
import time

from ..registry.errors import Busy
from . import metrics
from .settings import Settings

AT_ONCE = 20_000  # rows of an index that are searched for one image by itself: it takes less than a millisecond
SEARCHED = 64     # looks in one search; more gain nothing, see search.py
SLOW_THREADS = 4
LAST = 1.0        # seconds for threads to end


class Overloaded(Busy):
    """There is more to do than the server can do in time."""
    code = "overloaded"


class Work:
    """`await work.run(function, *arguments)` from the event loop of a worker process.

    Jobs beyond `settings.queue`, and those that could not begin within `settings.work_timeout` seconds, raise Overloaded
    (503). One whose request is gone does not begin. One that has begun cannot be stopped.
    """

    def __init__(self, settings: Settings):
        self._quick = _Threads("work", settings.threads_each, settings)
        self._slow = _Threads("slow", SLOW_THREADS, settings)
        self._long = _Threads("long", SLOW_THREADS, settings)
        self._searches: dict[tuple, list] = {}  # (registry, top_k): [(looks, future)] that wait for the search that runs

    async def run(self, function, *arguments):
        """`function(*arguments)` in one of the threads: milliseconds of computing, such as an image's."""
        return await self._quick.run(function, arguments)

    async def run_slow(self, function, *arguments):
        """The same in other threads: what takes seconds or waits for the disk does not hold up what is quick."""
        return await self._slow.run(function, arguments)

    async def run_long(self, function, *arguments):
        """The same in threads for what may take minutes, and must not hold up what takes a second."""
        return await self._long.run(function, arguments)

    async def classify(self, registry, images: list, top_k: int = 1, quad=None) -> tuple[list, list[dict]]:
        """Images (bytes) -> (looks of `registry.look`, results of `registry.decide`). Raises ImageError for one that cannot
        be used. quad: the corners of the document in the image."""
        if len(images) == 1:
            look, results = await self.run(_look, registry, images[0], quad, top_k)
            return [look], results or await self.decide(registry, [look], top_k)
        looks = list(await asyncio.gather(*(self.run(registry.look, image, quad) for image in images)))
        return looks, await self.decide(registry, looks, top_k)

    async def decide(self, registry, looks: list, top_k: int = 1) -> list[dict]:
        """`registry.decide(looks, top_k)`. Whatever came while one search was running shares the next: the vectors of a
        large index are read from memory once for all of it. No timer: where no search is running, one begins at once."""
        key, done = (registry, top_k), asyncio.get_running_loop().create_future()
        waiting = self._searches.get(key)
        if waiting is not None:
            waiting.append((looks, done))
        else:
            self._searches[key] = [(looks, done)]
            asyncio.ensure_future(self._search(*key))
        return await done

    async def _search(self, registry, top_k):
        key = registry, top_k
        while self._searches[key]:
            shared, count = [], 0
            while self._searches[key] and (not shared or count + len(self._searches[key][0][0]) <= SEARCHED):
                looks, done = self._searches[key].pop(0)
                if not done.cancelled():
                    shared.append((looks, done))
                    count += len(looks)
            try:
                results = await self.run(_decide, registry, [look for looks, _ in shared for look in looks], top_k)
            except Exception as error:
                for _, done in shared:
                    if not done.done():
                        done.set_exception(error)
                continue
            first = 0
            for looks, done in shared:
                if not done.done():
                    done.set_result(results[first:first + len(looks)])
                first += len(looks)
        del self._searches[key]

    def sweep(self) -> None:
        """Bring the gauge up to date."""
        metrics.JOBS.set(self._quick.waiting + self._slow.waiting + self._long.waiting)

    def close(self) -> None:
        """End the threads, each after the job that it is at, unless that takes longer than LAST."""
        latest = time.monotonic() + LAST
        for threads in (self._quick, self._slow, self._long):
            threads.close(latest)


def _look(registry, image, quad, top_k):
    """(look, results); results None where the index is large, and is better searched for several images at once."""
    snapshot = registry.snapshot()
    look = registry.look(image, quad, snapshot)
    return look, _decide(registry, [look], top_k, snapshot) if len(snapshot.index) < AT_ONCE else None


def _decide(registry, looks, top_k, snapshot=None):
    metrics.SEARCHES.observe(len(looks))
    return registry.decide(looks, top_k, snapshot)


class _Threads:
    """A pool of threads: as `concurrent.futures`, but bounded, without what has come too late, and for 40 us less a job."""

    def __init__(self, name, count, settings):
        self._jobs, self._bound, self._timeout = queue.SimpleQueue(), settings.queue_each, settings.work_timeout
        self.waiting = 0  # and at work; counted in the event loop alone
        self._threads = [threading.Thread(target=self._work, name=name, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    async def run(self, function, arguments):
        if self.waiting >= self._bound:
            raise Overloaded("there is more to do than this server can do; try again")
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        self.waiting += 1
        self._jobs.put((loop, done, time.monotonic() + self._timeout, function, arguments))
        return await done

    def _work(self):
        while (job := self._jobs.get()) is not None:
            loop, done, latest, function, arguments = job
            result = error = None
            if done.cancelled():
                pass
            elif time.monotonic() > latest:
                error = Overloaded(f"this waited {self._timeout:g} s for its turn; try again")
            else:
                try:
                    result = function(*arguments)
                except BaseException as raised:
                    error = raised
            try:
                loop.call_soon_threadsafe(self._finish, done, result, error)
            except RuntimeError:  # the loop has ended, and with it whoever asked
                return
            job = done = function = arguments = result = error = None  # an idle thread holds no image

    def _finish(self, done, result, error):
        self.waiting -= 1
        if not done.done():
            if error is None:
                done.set_result(result)
            else:
                done.set_exception(error)

    def close(self, latest):
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join(max(0, latest - time.monotonic()))
