"""The registries of losses, optimizers and learning-rate schedules, by name.

Imports no torch: an entry names its function as text.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Loss:
    """A loss.

    Attributes:
        function: maps (logits [B, K], targets [B] or [B, K], smoothing) to a scalar.
        has_exact_minimum: whether `theory.minimum` gives the minimum of the regularised problem.
        compares_logits: whether only differences between logits count. A common level of the biases
            then has no meaning.
        colour: its colour in figures.
        marks: the marks of our results and of the paper's, in figures.
    """

    function: str
    has_exact_minimum: bool = False
    compares_logits: bool = False
    colour: str = "black"
    marks: tuple[str, str] = ("D", "*")


@dataclass(frozen=True)
class Optimizer:
    """An optimizer.

    Attributes:
        function: maps (parameter groups, learning rate) and its options, by name, to a
            torch.optim.Optimizer.
        options: the settings of train.py that it takes.
        line: the line style in figures.
        buffers: numbers that it keeps for each trained parameter, all in last.pth.
    """

    function: str
    options: tuple[str, ...] = ()
    line: str = ":"
    buffers: int = 0


LOSSES: dict[str, Loss] = {
    "CE": Loss(
        "objective.losses:cross_entropy",
        has_exact_minimum=True,
        compares_logits=True,
        colour="#1f77b4",
        marks=("o", "x"),
    ),
    "BCE": Loss(
        "objective.losses:binary_cross_entropy",
        has_exact_minimum=True,
        colour="#d62728",
        marks=("s", "+"),
    ),
    "MSE": Loss("objective.losses:mean_squared_error", has_exact_minimum=True, colour="#2ca02c"),
}
OPTIMIZERS: dict[str, Optimizer] = {
    "SGD": Optimizer("objective.optimizers:build_sgd", options=("momentum",), line="--", buffers=1),
    "AdamW": Optimizer("objective.optimizers:build_adamw", options=("betas",), line="-", buffers=2),
}
SCHEDULES = ("cosine", "step", "constant")  # see objective.schedules


def explain_untaken(name: str, option: str) -> str | None:
    """Return why an option has no effect for an optimizer; None if the optimizer takes it."""
    return None if option in OPTIMIZERS[name].options else f"{name} has no such setting"


def list_optimizers(option: str) -> str:
    """List the optimizers that take an option."""
    return ", ".join(name for name, entry in OPTIMIZERS.items() if option in entry.options)
