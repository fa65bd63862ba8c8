"""How a network is trained: flat settings, so that a search space can name each of them."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from dkt_ray.models.base import ModelConfig

ObjectiveName = Literal["bce", "label_smoothing", "focal", "f1"]
OptimizerName = Literal["adam", "adamw", "adamp", "madgrad"]
ScheduleName = Literal["one_cycle", "linear", "cosine", "cosine_restarts", "step", "plateau", "constant"]
Precision = Literal["float32", "bfloat16"]
FOLLOWS: Final = ("learning_rate", "embedding_rate", "weight_decay", "clip_norm", "dropout", "unknown_share")


class OptimizationConfig(ModelConfig):
    """Settings of the training loop."""

    objective: ObjectiveName = "bce"
    """bce (binary cross-entropy), label_smoothing, focal, f1 (soft F1 of both answers)."""
    smoothing: float = Field(default=0.1, ge=0, lt=1)
    """label_smoothing: share of an answer's weight that both answers get alike."""
    focal_gamma: float = Field(default=2.0, ge=0)
    """focal: how much easy answers count less; 0: as bce."""
    last: int | None = Field(default=None, gt=0)
    """Train on the last K known answers of each segment only; null: on all of them."""
    optimizer: OptimizerName = "adamw"
    """adam, adamw, adamp, madgrad; the last one wants a far lower learning_rate."""
    learning_rate: float = Field(default=3e-3, gt=0)
    """Peak of the schedule."""
    embedding_rate: float = Field(default=0.05, gt=0, le=1)
    """Share of the learning rate that embeddings get; at the full rate rare ids learn their few answers by heart."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Of weight matrices; embeddings, biases and norms do not decay."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Longest gradient, over all weights; a longer one is shortened to it."""
    schedule: ScheduleName = "one_cycle"
    """one_cycle, linear, cosine, cosine_restarts, step, plateau, constant; set at every step."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps (cosine_restarts: of each cycle's) in which the rate rises; step, plateau, constant: none."""
    cycles: int = Field(default=5, gt=0)
    """cosine_restarts: number of cycles."""
    step_epochs: int = Field(default=3, gt=0)
    """step: epochs between two falls."""
    plateau_epochs: int = Field(default=1, gt=0)
    """plateau: epochs without a better validation AUC before a fall."""
    rate_decay: float = Field(default=0.5, gt=0, le=1)
    """What a fall leaves of the rate (step, plateau), and a cycle of the next one's peak (cosine_restarts)."""
    averaging: float = Field(default=0.0, ge=0, lt=1)
    """Decay of the moving average of the weights, which is validated and kept, e.g. 0.999; 0: none."""
    precision: Precision = "float32"
    """bfloat16: forward and backward pass in mixed precision, for devices that are faster so; scoring is float32."""
    compiled: bool = False
    """Whether torch.compile makes the forward pass: minutes at the start, for a faster step on some devices."""
    batch_rows: int = Field(default=6144, gt=0)
    """Padded rows (past and targets) per training step."""
    epochs: int = Field(default=6, gt=0)
    patience: int = Field(default=3, gt=0)
    """Epochs without a better validation AUC before training stops."""
    checkpoint_s: float = Field(default=300.0, ge=0)
    """Seconds between checkpoints within an epoch; there is one after each epoch too."""
