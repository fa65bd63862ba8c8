"""`dkt simulate`: write a simulated learning platform to a folder or a bucket."""

from __future__ import annotations

import logging
import time
from typing import Any

from dkt_ray.data.simulate import SimulateConfig, simulate, write
from dkt_ray.data.simulation.calibration import calibrate, table
from dkt_ray.storage import open_store

CALIBRATED_USERS = 2000  # smaller cohorts are too noisy to compare with the reference

logger = logging.getLogger(__name__)


def run(config: SimulateConfig) -> dict[str, Any]:
    """Simulate, compare with the reference statistics where the cohort is large enough, and write the files.

    Returns:
        rows, users, test_users, accuracy (of all answers), seconds (wall), out.
    """
    started = time.perf_counter()
    simulation = simulate(config)
    if config.users >= CALIBRATED_USERS and config.bank_fraction == 1:
        logger.info("calibration against the reference statistics\n%s", table(calibrate(simulation)))
    write(simulation, open_store(config.out))
    return {
        "rows": simulation.rows,
        "users": simulation.users,
        "test_users": int(simulation.is_test.sum()),
        "accuracy": round(float(simulation.correct.mean()), 4),
        "seconds": round(time.perf_counter() - started, 2),
        "out": config.out,
    }
