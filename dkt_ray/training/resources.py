"""What one fit may use, CPUs and a share of a GPU: checked against the nodes, and kept to inside the worker."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from pydantic import Field, field_validator

from dkt_ray.config import Config
from dkt_ray.errors import ConfigError, TrainingError

logger = logging.getLogger(__name__)

_SHORT: Final = (  # what libraries say where memory is short
    *("out of memory", "can't allocate memory", "not enough memory"),  # torch, of a GPU and of a CPU
    *("bad_alloc", "bad allocation"),  # LightGBM: what C++ says
)


class Resources(Config):
    """What one trial or fold of a family takes while it runs."""

    cpus: float = Field(default=1, gt=0)
    """CPU cores, and threads."""
    gpus: float = Field(default=0, ge=0)
    """GPUs; 0.25 lets four fits share one. Where no node has a GPU, none is used."""

    @field_validator("gpus")
    @classmethod
    def _whole_above_one(cls, gpus: float) -> float:
        if gpus > 1 and gpus != int(gpus):
            raise ValueError("a fit takes a part of one GPU (0.5) or whole GPUs (2)")
        return gpus

    def bundle(self) -> dict[str, float]:
        """The same in Ray's names."""
        return {"CPU": self.cpus, "GPU": self.gpus} if self.gpus else {"CPU": self.cpus}


def place(wanted: Mapping[str, Resources], nodes: Sequence[Mapping[str, float]]) -> dict[str, Resources]:
    """What each family gets: as wanted, but without GPUs where no node has one.

    Args:
        wanted: resources per family.
        nodes: what each node has in all, in Ray's names.

    Raises:
        ConfigError: no node has that much, so that its fits would wait for ever.
    """
    placed = {}
    for family, resources in wanted.items():
        if resources.gpus and not any(node.get("GPU", 0) for node in nodes):
            logger.warning("%s asks for %g GPU, and no node has one: it runs on CPUs", family, resources.gpus)
            resources = resources.model_copy(update={"gpus": 0.0})
        if not any(_fits(resources, node) for node in nodes):
            best = max(nodes, key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)), default={})
            raise ConfigError(
                f"resources.{family} is {resources.bundle()}, and no node has that much; the largest has "
                f"{ {name: best.get(name, 0) for name in resources.bundle()} }: ask for less, add a node, or set "
                "autoscale=true where the cluster will add one"
            )
        placed[family] = resources
    return placed


@contextmanager
def claimed(resources: Resources) -> Iterator[None]:
    """Keep this process to its share: threads as CPUs, no GPU or its part of one, nothing that others freed."""
    from threadpoolctl import threadpool_limits

    release_memory()
    threads = max(1, int(resources.cpus))
    settings = {"OMP_NUM_THREADS": str(threads)}  # for libraries that are loaded from here on
    if not resources.gpus:
        settings["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves the GPUs visible to those who asked for none
    elif resources.gpus < 1:
        _limit_gpu_memory(resources.gpus)
    with environment(settings), threadpool_limits(threads):  # for those that are loaded
        yield


def release_memory() -> None:
    """Give back to the system what this process has freed: glibc keeps it, for each of its threads anew."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)


def out_of_memory(found: str) -> str:
    """What helps a trial that has run out of memory."""
    return (
        f"out of memory ({found}); run fewer trials at once (concurrency), give each more cpus, or lower sample or "
        "the batch_rows of the family"
    )


@contextmanager
def short_of_memory(settings: str, raised: type[Exception]) -> Iterator[None]:
    """Say what helps a fit when memory is short.

    Args:
        settings: those that decide how much it takes, and which of them to lower.
        raised: what its library raises then, and for other reasons too: those pass.

    Raises:
        TrainingError: memory is short.
    """
    try:
        yield
    except (MemoryError, raised) as error:
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in _SHORT):
            raise
        found = str(error).partition("\n")[0] or "MemoryError"
        raise TrainingError(f"memory is short with {settings} ({found})") from error


@contextmanager
def environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for the time of a block."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _fits(resources: Resources, node: Mapping[str, float]) -> bool:
    return all(node.get(name, 0) >= need for name, need in resources.bundle().items())


def _limit_gpu_memory(share: float) -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(share)
