"""(Ray) The engine that maps tasks over the cluster with Ray Data, which runs those of a lost worker again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, Final, TypeVar

import pyarrow as pa
import ray
import ray.data

from dkt_ray import errors
from dkt_ray.data.engine import Task
from dkt_ray.errors import DktError
from dkt_ray.log import progress

T = TypeVar("T")


class RayEngine:
    """One Ray Data task per item."""

    name: Final = "ray"

    def share(self, value: T) -> Callable[[], T]:
        """Put a value into the object store once; a process reads it once."""
        return partial(_shared, ray.put(value))

    def run(self, task: Task, items: Sequence[dict[str, Any]], stage: str) -> Iterator[dict[str, Any]]:
        """Map a picklable task over items."""
        if not items:
            return
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.execution_options.preserve_order = True
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        blocks: list[Any] = [
            pa.Table.from_pylist([item]) for item in items
        ]  # not from_items: it would turn lists into tensors
        dataset = ray.data.from_arrow(blocks)
        mapped = dataset.map_batches(partial(_guarded, task), batch_size=None, batch_format="pyarrow")
        with progress(stage, len(items)) as reporter:
            batches: Iterator[Any] = iter(mapped.iter_batches(batch_size=None, batch_format="pyarrow"))
            for table in batches:
                for result in table.to_pylist():
                    if result.get("error"):
                        raise getattr(errors, result["error"])(result["message"])
                    reporter.advance()
                    yield result


@lru_cache(maxsize=1)
def _shared(reference: ray.ObjectRef[T]) -> T:
    """Rebuilt once in a process, which may have many tasks to do."""
    return ray.get(reference)


def _guarded(task: Task, table: pa.Table) -> pa.Table:
    """Run the task on every item; an error for people travels as data, past Ray's wrapping of exceptions."""
    results = []
    for item in table.to_pylist():
        try:
            results.append(task(item))
        except DktError as error:
            results.append({"error": type(error).__name__, "message": str(error)})
    return pa.Table.from_pylist(results)
