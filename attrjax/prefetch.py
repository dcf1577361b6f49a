"""What is made in other threads while this one works."""

import queue
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


def beside(make: Callable[[], T]) -> Future[T]:
    """What a function gives, made in another thread; its errors are raised where the result is asked for.

    A program that ends before waits for it.
    """
    pool = ThreadPoolExecutor(1)
    future = pool.submit(make)
    pool.shutdown(wait=False)
    return future


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
