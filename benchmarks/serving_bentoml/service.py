"""BentoML's side of benchmarks/serving.py: the same bundle, predictor and request contract; runs in a venv of its own.

`predict` answers one request a call; `predict_many` takes lists, which BentoML's adaptive batching fuses. The bundle's
folder is in DKT_BUNDLE, the number of worker processes in DKT_WORKERS.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import bentoml
import torch

from dkt_ray.serving.contract import PredictRequest
from dkt_ray.serving.predictor import Predictor
from dkt_ray.serving.requests import brought, query

MAX_BATCH = int(os.environ.get("DKT_MAX_BATCH", "32"))
MAX_LATENCY_MS = int(os.environ.get("DKT_MAX_LATENCY_MS", "60000"))  # a request that would wait longer is refused


@bentoml.service(
    workers=int(os.environ.get("DKT_WORKERS", "1")),
    traffic={"timeout": 60},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
)
class Service:
    """One loaded bundle per worker."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.predictor = Predictor.load(Path(os.environ["DKT_BUNDLE"]))

    @bentoml.api
    def predict(self, request: PredictRequest, /) -> dict[str, Any]:
        """One request."""
        return self._answers([request])[0]

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=MAX_LATENCY_MS)
    def predict_many(self, requests: list[PredictRequest], /) -> list[dict[str, Any]]:
        """Requests that wait at the same time, in one pass."""
        return self._answers(requests)

    def _answers(self, requests: list[PredictRequest]) -> list[dict[str, Any]]:
        scores = self.predictor.answer([query(brought(request).past, request.targets) for request in requests])
        return [
            {
                "model_version": self.predictor.version,
                "predictions": [
                    {"question": target.question, "probability": probability}
                    for target, probability in zip(request.targets, found.probability.tolist(), strict=True)
                ],
            }
            for request, found in zip(requests, scores, strict=True)
        ]
