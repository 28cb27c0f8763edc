"""Checks of a stored state before it is used.

A tensor of another shape is a defect of the file. torch's fused optimizers trust the shapes of
their state and would write outside its memory.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rundir.names import METRICS_COLUMNS, NC_COLUMNS


def check_tensors(what: str, found: Any, expected: Mapping[str, Any]) -> None:
    """Refuse anything but tensors of the names, shapes and types of `expected` (ValueError)."""
    if not isinstance(found, Mapping) or found.keys() != expected.keys():
        raise ValueError(f"{what} has other entries")
    for name, tensor in expected.items():
        if not isinstance(tensor, Tensor):
            continue
        other = found[name]
        if not isinstance(other, Tensor) or other.layout != tensor.layout:
            raise ValueError(f"{what}: {name} is not a tensor")
        if (other.shape, other.dtype) != (tensor.shape, tensor.dtype):
            raise ValueError(
                f"{what}: {name} is {other.dtype} {list(other.shape)}, "
                f"not {tensor.dtype} {list(tensor.shape)}"
            )


def merge_optimizer_state(optimizer: torch.optim.Optimizer, stored: Any) -> dict[str, Any]:
    """Return the state_dict of `optimizer` with the tensors of `stored`, each checked.

    Parameters without a stored state keep their own, and all options are the optimizer's own.
    Raises ValueError.
    """
    own = optimizer.state_dict()
    groups = stored["param_groups"]
    if [group["params"] for group in groups] != [group["params"] for group in own["param_groups"]]:
        raise ValueError("the optimizer has other parameters")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = dict(own["state"])
    for number, values in stored["state"].items():
        if not isinstance(number, int) or not 0 <= number < len(parameters):
            raise ValueError(f"the optimizer has no parameter {number}")
        if any(value is None for value in values.values()):
            continue  # SGD of an earlier version before its first step
        expected = compute_state_after_step(optimizer, parameters[number])
        check_tensors(f"the optimizer's parameter {number}", values, expected)
        state[number] = values
    return {"state": state, "param_groups": own["param_groups"]}


def compute_state_after_step(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Any]:
    """Compute which state an optimizer of this kind keeps for a parameter, by a step on zeros."""
    zeros = torch.zeros(parameter.shape, dtype=parameter.dtype, requires_grad=True)
    zeros.grad = torch.zeros_like(zeros)
    # AdamW's defaults hold more than its arguments.
    names = inspect.signature(type(optimizer)).parameters
    options = {name: value for name, value in optimizer.defaults.items() if name in names}
    twin = type(optimizer)([zeros], **options)
    twin.step()
    return dict(twin.state[zeros])


def check_history(history: Any, epochs: int) -> None:
    """Refuse anything but a row of metrics.csv for each of `epochs` epochs (ValueError)."""
    if not isinstance(history, Sequence) or len(history) != epochs:
        raise ValueError(f"it does not hold the metrics of {epochs} epochs")
    for epoch, row in enumerate(history, start=1):
        if not isinstance(row, Mapping) or not set(row) >= set(METRICS_COLUMNS):
            raise ValueError(f"the metrics of epoch {epoch} are not complete")
        measured = [name for name in NC_COLUMNS if name in row]
        numbers = [row[name] for name in (*METRICS_COLUMNS, *measured)]
        if row["epoch"] != epoch or not all(isinstance(n, int | float) for n in numbers):
            raise ValueError(f"the metrics of epoch {epoch} are not as they were written")
