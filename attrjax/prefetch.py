"""What is made in other threads while this one works."""

import os
import queue
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
S = TypeVar("S")
MOST = 16  # threads of ``side_by_side``, each of which holds what it makes


def beside(make: Callable[[], T]) -> Future[T]:
    """What a function gives, made in another thread; its errors are raised where the result is asked for.

    A program that ends before waits for it.
    """
    pool = ThreadPoolExecutor(1)
    future = pool.submit(make)
    pool.shutdown(wait=False)
    return future


def side_by_side(make: Callable[[S], T], items: Iterable[S]) -> list[T]:
    """What a function gives of every item, in order, made by as many threads as there are cores.

    It is for functions in which Python does not do the work itself: large arrays are copied, small programs
    are compiled, of which an accelerator takes a tenth of a second for each.
    """
    with ThreadPoolExecutor(min(MOST, os.cpu_count() or 1)) as pool:
        return list(pool.map(make, items))


def in_background(fetch: Callable[[int], Any], items: range, ahead: int) -> Generator[Any]:
    """``fetch`` of every item, in order, made in another thread; its errors are raised here.

    At most ``ahead`` results, 1 or more, wait to be taken.
    """
    results: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(maxsize=ahead)
    over = threading.Event()

    def put(result: Any, error: BaseException | None = None) -> None:
        while not over.is_set():
            try:
                return results.put((result, error), timeout=0.1)
            except queue.Full:
                pass

    def work() -> None:
        try:
            for item in items:
                if over.is_set():
                    return
                put(fetch(item))
        except BaseException as error:  # whatever it is, it is raised where the result is waited for
            put(None, error)

    thread = threading.Thread(target=work, name="batches", daemon=True)
    thread.start()
    try:
        for _ in items:
            result, error = results.get()
            if error is not None:
                raise error
            yield result
    finally:
        over.set()
        thread.join()
