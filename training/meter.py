"""The totals of an epoch of training; they stay on the device until they are read."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from metrics.accuracy import count_correct
from utils.world import ALONE, World

# Steps counted at once. Counting every step would let the GPU wait for the host.
PENDING = 16


class NonFiniteLoss(Exception):
    """Training diverged: the objective of `step` (from 1) of `epoch` is not finite."""

    def __init__(self, epoch: int, step: int, learning_rate: float):
        super().__init__(
            f"the loss is not finite at epoch {epoch}, step {step}, learning rate "
            f"{learning_rate:g}; what was saved before is intact (a lower --lr, --epochs_warmup or "
            "smaller decays may help)"
        )


class Meter:
    """Loss and correct counts of one epoch of `steps` steps.

    `add` only enqueues work on the device. `estimate_loss` and `read_summary` wait for the device,
    once each: call them at the epoch's end or when a display is due.

    Args:
        steps: of an epoch.
        device: where the totals are.
        world: the processes whose totals add up to those of the batches.
    """

    def __init__(self, steps: int, device: torch.device, world: World = ALONE):
        self._world = world
        # The objective of every step, so that the one that diverged can be named afterwards.
        self._objectives = torch.zeros(steps, device=device)
        self._losses = torch.zeros(steps, device=device)
        self._correct = torch.zeros(2, dtype=torch.int64, device=device)
        self._sizes: list[int] = []  # samples in each step, of all processes
        self._own = 0  # samples of this process since the epoch began or went on here
        self._pending: list[tuple[Tensor, ...]] = []

    @property
    def device(self) -> torch.device:
        """Where the totals are."""
        return self._objectives.device

    @property
    def steps(self) -> int:
        """The steps of the epoch."""
        return len(self._objectives)

    @property
    def seen(self) -> int:
        """Samples counted, of all processes."""
        return sum(self._sizes)

    def reset(self) -> None:
        """Start a new epoch."""
        for total in (self._objectives, self._losses, self._correct):
            total.zero_()
        self._sizes, self._own, self._pending = [], 0, []

    def add(
        self,
        objective: Tensor,
        loss: Tensor,
        logits: Tensor,
        targets: Tensor,
        size: int | None = None,
    ) -> None:
        """Count the next step: its mean losses, logits [B, K], targets [B] or [B, K].

        A mixed sample counts as correct where its heaviest label is hit. The tensors are kept for
        a while: they must not be written to afterwards. `size` is the number of samples of all
        processes, None for B; the losses of the processes then add up to those of the batch.
        """
        self._sizes.append(len(targets) if size is None else size)
        self._own += len(targets)
        self._pending.append((objective, loss, logits, targets))
        if len(self._pending) == PENDING:
            self._count()

    def _count(self) -> None:
        """Count the pending steps. The totals do not depend on when this happens."""
        if not self._pending:
            return
        objectives, losses, logits, targets = zip(*self._pending, strict=True)
        steps = slice(len(self._sizes) - len(self._pending), len(self._sizes))
        self._objectives[steps] = torch.stack(objectives)
        self._losses[steps] = torch.stack(losses)
        all_targets = torch.cat(targets)
        labels = all_targets.argmax(dim=1) if all_targets.ndim == 2 else all_targets
        self._correct += count_correct(torch.cat(logits), labels)
        self._pending = []

    def estimate_loss(self) -> float:
        """Return the mean loss over this process's samples, without the decay terms, for a display.

        It is infinite or NaN if the objective of a step is.
        """
        self._count()
        objectives, losses, _ = self._read()
        if not all(map(math.isfinite, objectives)) or self._own == 0:
            return math.nan
        return self._sum(losses) / self._own

    def read_summary(self, epoch: int, learning_rate: float) -> dict[str, float]:
        """Return the mean loss without the decay terms, accuracies in percent.

        Raises NonFiniteLoss for the first step whose objective is infinite or NaN; `epoch` and
        `learning_rate` are for its message. All processes must call it.
        """
        self.share()
        objectives, losses, correct = self._world.broadcast(self._read())
        for step, objective in enumerate(objectives, start=1):
            if not math.isfinite(objective):
                raise NonFiniteLoss(epoch, step, learning_rate)
        top1, top5 = (100 * count / self.seen for count in correct)
        mean_loss = self._sum(losses) / self.seen
        return {"train_loss": mean_loss, "train_top1": top1, "train_top5": top5}

    def share(self) -> None:
        """Give the first process the totals of all, and the others none. Counting may go on."""
        self._count()
        if self._world.size == 1:
            return
        # Sums of a few float32 numbers are exact in float64: a resumed run adds up the same.
        for total in (self._objectives, self._losses, self._correct):
            exact = total.double() if total.is_floating_point() else total
            total.copy_(self._world.total(exact))
        self._keep_first()

    def _keep_first(self) -> None:
        """Note that the totals are those of all processes, and count no sample twice."""
        self._own = self.seen
        if not self._world.is_first:
            for total in (self._objectives, self._losses, self._correct):
                total.zero_()

    def _sum(self, losses: list[float]) -> float:
        return math.fsum(map(math.prod, zip(losses, self._sizes, strict=True)))

    def _read(self) -> tuple[list[float], list[float], list[float]]:
        """Read the steps' objectives and losses, and correct counts, all in one transfer."""
        steps = len(self._sizes)
        totals = [self._objectives[:steps], self._losses[:steps], self._correct]
        values = torch.cat([total.double() for total in totals]).tolist()  # exact in float64
        return values[:steps], values[steps:-2], values[-2:]

    def state_dict(self) -> dict[str, Any]:
        """Return the totals for last.pth."""
        self._count()
        return {
            "objectives": self._objectives,
            "losses": self._losses,
            "correct": self._correct,
            "sizes": self._sizes,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the totals that `state_dict` returned."""
        self._objectives.copy_(state["objectives"])
        self._losses.copy_(state["losses"])
        self._correct.copy_(state["correct"])
        self._sizes, self._pending = list(state["sizes"]), []
        self._keep_first()
