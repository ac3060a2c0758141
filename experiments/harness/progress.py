"""What is being measured, on the standard error: a tqdm bar, or lines where tqdm is not installed."""

import sys
from collections.abc import Callable, Iterator
from typing import TypeVar

try:
    from tqdm import tqdm
except ImportError:
    tqdm = None

T = TypeVar("T")


def follow(items: list[T], title: Callable[[T], str]) -> Iterator[T]:
    """`items`, one after the other, each announced."""
    if tqdm is None:
        for number, item in enumerate(items, 1):
            print(f"[{number}/{len(items)}] {title(item)}", file=sys.stderr, flush=True)
            yield item
        return
    with tqdm(items) as bar:
        for item in bar:
            bar.set_description(title(item))
            yield item
