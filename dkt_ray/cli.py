"""The `dkt` command: one subcommand per job; `jobs/NAME.py` calls the same table.

A job reads its config, logs to stderr, and prints one JSON object as the last line of stdout.
"""

from __future__ import annotations

import importlib
import json
import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Final, Literal, NamedTuple

from dkt_ray import __version__, log, session
from dkt_ray.config import Config, parse
from dkt_ray.errors import DktError

logger = logging.getLogger(__name__)


class Job(NamedTuple):
    """Where a job lives: `module` holds the function `run(config)` and the config class."""

    summary: str
    module: str
    config: str
    ray: Literal[
        "none", "lazy", "own", "cluster"
    ]  # lazy: the job connects if need be; own: one unless RAY_ADDRESS is set


JOBS: Final = {
    "simulate": Job("make a learning platform's logs", "pipelines.simulate", "SimulateConfig", "none"),
    "prepare": Job(
        "validate, order and split interaction logs, fit the encoder", "pipelines.prepare", "PrepareConfig", "lazy"
    ),
    "windows": Job("count the training windows that each strategy makes", "pipelines.windows", "WindowsConfig", "none"),
    "eda": Job("describe a dataset in one interactive HTML page", "pipelines.eda", "EdaConfig", "none"),
    "train": Job("fit one model, follow it, judge it on a fold's users", "pipelines.train", "TrainConfig", "none"),
    "tune": Job(
        "sweep all model families in parallel, keep out-of-fold predictions", "pipelines.sweep", "TuneConfig", "own"
    ),
    "automl": Job(
        "spend a time budget on LightGBM's columns and settings: gain or no gain?",
        "pipelines.automl",
        "AutomlConfig",
        "own",
    ),
    "ensemble": Job("weigh the families by their out-of-fold predictions", "pipelines.blend", "EnsembleConfig", "own"),
    "report": Job(
        "describe a run in one HTML page: trials, members, ensemble", "pipelines.experiment", "ReportConfig", "none"
    ),
    "runs": Job("list the runs of a store: trials, members, ensemble, bundle", "pipelines.runs", "RunsConfig", "none"),
    "evaluate": Job(
        "print or make a run's table, or open the test vault (final=true)",
        "pipelines.evaluate",
        "EvaluateConfig",
        "none",
    ),
    "publish": Job("make a bundle of a run and put it into the registry", "pipelines.publish", "PublishConfig", "none"),
    "registry": Job("list, verify, promote or roll back bundles", "pipelines.registry", "RegistryConfig", "none"),
    "rollout": Job("replace the served bundle without losing a request", "serving.rollout", "RolloutConfig", "cluster"),
    "rollback": Job(
        "end a rollout that is at work, or serve the bundle before again",
        "serving.rollback",
        "RollbackConfig",
        "cluster",
    ),
    "keys": Job("make, rotate, revoke and list API keys", "serving.issue", "KeysConfig", "none"),
    "outcomes": Job(
        "how well the bundles foresaw what users answered; roll back a champion that got worse",
        "pipelines.outcomes",
        "OutcomesConfig",
        "lazy",
    ),
    "score": Job("write probabilities for all hidden answers of a file", "pipelines.scoring", "ScoreConfig", "lazy"),
    "predict": Job(
        "ask a service or a bundle how likely right answers are", "pipelines.predict", "PredictConfig", "none"
    ),
    "events": Job(
        "send a log of answers to a service that keeps them, or count", "pipelines.events", "EventsConfig", "none"
    ),
    "champion": Job(
        "make the champion in one command: prepare, tune, ensemble, publish",
        "pipelines.champion",
        "ChampionConfig",
        "own",
    ),
    "export": Job("write the log's graded events to the store, each once", "pipelines.export", "ExportConfig", "none"),
    "forget": Job(
        "let exports and datasets follow deletions and a retention limit", "pipelines.forget", "ForgetConfig", "lazy"
    ),
    "backup": Job("copy a SQLite database of events while it is in use", "events.backup", "BackupConfig", "none"),
    "demo": Job(
        "the whole path, from logs to a served ensemble with a web page", "pipelines.demo", "DemoConfig", "own"
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one job; returns the exit code: 0 done, 2 wrong input (one clear message), 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(_usage())
        return 0
    if arguments[0] == "--version":
        sys.stdout.write(f"dkt {__version__}\n")
        return 0
    name = arguments[0]
    if name not in JOBS:
        sys.stderr.write(f"dkt: no job {name!r}; jobs: {', '.join(JOBS)}\n")
        return 2
    return run_job(name, arguments[1:])


def run_job(name: str, argv: Sequence[str]) -> int:
    """Parse a job's settings, connect to Ray where the job needs it, run it, print its result."""
    job = JOBS[name]
    needs_ray = job.ray in ("own", "cluster")
    if needs_ray:
        session.prepare_environment()
    module = importlib.import_module(f"dkt_ray.{job.module}")
    config_class: type[Config] = getattr(module, job.config)
    try:
        config = parse(config_class, argv, f"dkt {name}", job.summary)
        log.configure()
        if needs_ray:
            session.connect(running=job.ray == "cluster")
        with _interruptible():
            result = module.run(config)
    except DktError as error:
        sys.stderr.write(f"dkt {name}: {type(error).__name__}: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(f"dkt {name}: interrupted\n")
        return 130
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()
    return 0


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM and SIGINT end a job cleanly: Ray's handler for the first and a shell's "ignore" for the other do not."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _usage() -> str:
    width = max(map(len, JOBS))
    lines = [f"  {name:<{width}}  {job.summary}" for name, job in JOBS.items()]
    return "\n".join(
        [
            "usage: dkt JOB [--config FILE] [--set KEY=VALUE ...]",
            "",
            *lines,
            "",
            "dkt JOB --help lists its settings",
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
