"""The state that a training step changes, its copies, and how far two steps from it are apart."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.averaging import Average

Results = tuple[Tensor, Tensor, Tensor]  # objective, loss, logits

# How far a replay may be from an ordinary step, in each tensor (Euclidean norms):
# - NOISE times the distance of two ordinary steps from the same state. It is 0 with reproducible
#   kernels; others add up in an order that changes.
# - this share of what the step changes in the tensor: sums in another order, at the rounding of
#   what is added up. Units of rounding: 2⁻²⁴ (fp32), 2⁻¹¹ (tf32, fp16), 2⁻⁸ (bf16).
# - STORED of the tensor itself: both steps round it once to its own type.
# What a wrong graph does (a stale batch, another dropout mask, an update that is missing) is of the
# size of the step itself.
NOISE = 8.0
SHARES = {"fp32": 2.0**-13, "tf32": 2.0**-7, "fp16": 2.0**-7, "bf16": 2.0**-4}
STORED = 2.0**-22


@dataclass
class Snapshot:
    """Copies of all that a step changes, and of its results."""

    tensors: dict[str, Tensor]
    results: dict[str, Tensor]
    scaler: dict[str, float]
    generator: Tensor


class StepState:
    """All that a training step changes.

    These are network, optimizer, scaler, the device's generator and the average of the weights.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        device: torch.device,
        average: Average | None = None,
    ) -> None:
        self._model, self.optimizer, self._scaler = model, optimizer, scaler
        self.device, self._average = device, average

    def _list_tensors(self) -> dict[str, Tensor]:
        parameters = dict(self._model.named_parameters())
        tensors = {**parameters, **dict(self._model.named_buffers())}
        for name, parameter in parameters.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"{key} of {name}"] = value
        if self._average is not None:
            module = self._average.module
            averages = {**dict(module.named_parameters()), **dict(module.named_buffers())}
            tensors |= {f"average of {name}": value for name, value in averages.items()}
        return {name: tensor.detach() for name, tensor in tensors.items()}

    def copy(self, results: Results | tuple[()] = ()) -> Snapshot:
        """Copy the state, and the results of the step that led to it. Waits for the device."""
        on_gpu = self.device.type == "cuda"
        names = ("objective", "loss", "logits")
        return Snapshot(
            {name: tensor.clone() for name, tensor in self._list_tensors().items()},
            {name: tensor.clone() for name, tensor in zip(names, results, strict=False)},
            self._scaler.state_dict(),
            torch.cuda.get_rng_state(self.device) if on_gpu else torch.get_rng_state(),
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Write the copied state back in place: a recorded step knows the addresses."""
        for name, tensor in self._list_tensors().items():
            tensor.copy_(snapshot.tensors[name])
        self._scaler.load_state_dict(snapshot.scaler)
        if self._scaler.is_enabled():
            # Also forgets a step that was broken off between its parts.
            self._scaler.update(snapshot.scaler["scale"])
            for name in ("grad_scale", "found_inf"):
                vars(self.optimizer).pop(name, None)
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(snapshot.generator, self.device)
        else:
            torch.set_rng_state(snapshot.generator)


def was_left_out(before: Snapshot, after: Snapshot) -> bool:
    """Return whether the scaler left out the update because gradients overflowed."""
    return bool(before.scaler) and after.scaler["scale"] < before.scaler["scale"]


def find_difference(
    before: Snapshot, ordinary: tuple[Snapshot, Snapshot], replayed: Snapshot, share: float
) -> str:
    """Describe where a replay differs from ordinary steps by more than rounding; "" if nowhere.

    Args:
        before: the state that all began from.
        ordinary: after each of two ordinary steps.
        replayed: after the replay.
        share: the rounding of the step, a value of `SHARES`.
    """
    once, twice = ordinary
    if not torch.equal(once.generator, replayed.generator):
        return "the first replay drew other random numbers than an ordinary step"
    if once.scaler != replayed.scaler:
        return "the first replay changed the loss scale in another way than an ordinary step"
    names, *columns = zip(*_compare(before, once, twice, replayed, share), strict=True)
    distances, bounds = (torch.stack(column).tolist() for column in columns)
    excess = {
        name: (distance / bound if bound else math.inf, distance, bound)
        for name, distance, bound in zip(names, distances, bounds, strict=True)
        if distance and not distance <= bound
    }
    if not excess:
        return ""
    name, (_, distance, bound) = max(excess.items(), key=lambda item: item[1])
    return (
        f"the first replay differs from an ordinary step ({name} by {distance:.1e}, rounding "
        f"explains {bound:.1e})"
    )


def _compare(
    before: Snapshot, once: Snapshot, twice: Snapshot, replayed: Snapshot, share: float
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield each tensor's name, its distance from the ordinary step and the largest allowed one."""
    for name, expected in {**once.tensors, **once.results}.items():
        found, again = (
            (snapshot.tensors | snapshot.results)[name] for snapshot in (replayed, twice)
        )
        size = torch.linalg.vector_norm(expected.double())
        change = (
            _measure_distance(expected, before.tensors[name]) if name in before.tensors else size
        )
        noise = _measure_distance(expected, again)
        yield (
            name,
            _measure_distance(expected, found),
            NOISE * noise + share * change + STORED * size,
        )


def _measure_distance(one: Tensor, other: Tensor) -> Tensor:
    """Return ‖one − other‖ in float64; equal infinities and two NaN have distance 0."""
    equal = (one == other) | (one.isnan() & other.isnan())
    return torch.linalg.vector_norm((one.double() - other.double()).masked_fill(equal, 0.0))
