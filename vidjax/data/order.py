"""The order of examples and batches: grain's data sets without end, each element a function of (seed, its number)."""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np

FOREVER = 2**48  # elements, that is: grain's own "for ever" overflows in batches of one


def repeat(numbers: grain.MapDataset) -> grain.MapDataset:
    """Repeats a data set without end."""
    return numbers.repeat(FOREVER // len(numbers))


def shuffle(numbers: Sequence[int], seed: int, stream: int = 0) -> grain.MapDataset:
    """Returns numbers in a new order every epoch, without end; each `stream` of a seed has its own.

    Below 2^16, grain's constant-memory shuffle takes milliseconds per element (it walks a 16-bit cycle until it is in
    the range), so small sets get one permutation per epoch.
    """
    size, own = len(numbers), (stream,) if stream else ()
    places = grain.MapDataset.range(size)
    places = places.seed(int(np.random.SeedSequence((seed, *own)).generate_state(1)[0]) if own else seed)
    if size > 2**16:
        shuffled = repeat(places.shuffle())
        return shuffled if numbers == range(size) else shuffled.map(lambda i: int(numbers[i]))

    @functools.lru_cache(maxsize=4)
    def order(epoch: int) -> np.ndarray:
        return np.random.default_rng((seed, epoch, *own)).permutation(size)

    return repeat(places).map_with_index(lambda i, _: int(numbers[order(i // size)[i % size]]))


def mix(streams: Sequence[grain.MapDataset], shares: Sequence[float]) -> grain.MapDataset:
    """Interleaves streams evenly: the first n elements hold each as often as its share of n says, within one; shares
    are rounded to a hundredth of the least one."""
    return streams[0] if len(streams) == 1 else grain.MapDataset.mix(streams, shares)


def stream_groups(groups: Sequence[tuple[Sequence[Sequence[int]], Sequence[float]]], seed: int) -> list[Any]:
    """Returns a stream for each group of lists of numbers and their shares, with an order of its own for each list."""
    turn = itertools.count()
    return [mix([shuffle(own, seed, next(turn)) for own in lists], shares) for lists, shares in groups]


def batch_streams(
    streams: Sequence[Any], shares: Sequence[float], batch_size: int, start_step: int, process: int, processes: int
) -> Any:
    """Returns batches without end from `start_step` on, each of one stream. Process p of n has its contiguous n-th of
    every batch, and at each step all have that of the same stream."""
    own = [s.batch(batch_size // processes).slice(slice(process, None, processes)) for s in streams]
    return mix(own, shares).slice(slice(start_step, None))


def read(batches: Any, workers: int = 0, prefetch: int = 1) -> Iterator[Any]:
    """Iterates over batches, `workers` threads ahead, which hold `prefetch` of them."""
    if not workers:
        return (batches[i] for i in itertools.count())
    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=workers, prefetch_buffer_size=prefetch)))
