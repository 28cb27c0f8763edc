"""What an epoch of training adds up, kept on the device until somebody asks."""

from typing import Any

import torch
from torch import Tensor

from utils.metrics import correct_counts


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

    `add` only enqueues work on the device. `check_finite`, `mean_loss` and `summary` read results
    back, which waits for the device: call them at the epoch's end or when a display is due.
    """

    def __init__(self, steps: int, device: torch.device):
        # The objective of every step, so that the one that diverged can be named afterwards.
        self._objectives = torch.zeros(steps, device=device)
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._correct = torch.zeros(2, dtype=torch.int64, device=device)
        self.seen = 0

    def reset(self) -> None:
        for total in (self._objectives, self._loss, self._correct):
            total.zero_()
        self.seen = 0

    def add(self, step: int, objective: Tensor, loss: Tensor, logits: Tensor, targets: Tensor):
        """Count step `step` (from 0): its mean losses, logits [B, K], targets [B] or [B, K].

        A mixed sample counts as correct where its heaviest label is hit.
        """
        labels = targets.argmax(dim=1) if targets.ndim == 2 else targets
        self._objectives[step] = objective
        self._loss += loss.double() * len(labels)
        self._correct += correct_counts(logits, labels)
        self.seen += len(labels)

    def check_finite(self, epoch: int, learning_rate: float) -> None:
        """Raise NonFiniteLoss for the first step whose objective is infinite or NaN."""
        bad = (~torch.isfinite(self._objectives)).nonzero()
        if len(bad):
            raise NonFiniteLoss(epoch, bad[0].item() + 1, learning_rate)

    def mean_loss(self) -> float:
        return self._loss.item() / self.seen

    def summary(self) -> dict[str, float]:
        """Mean loss without the decay terms, accuracies in percent."""
        top1, top5 = (100 * count / self.seen for count in self._correct.tolist())
        return {"train_loss": self.mean_loss(), "train_top1": top1, "train_top5": top5}

    def state_dict(self) -> dict[str, Any]:
        return {
            "objectives": self._objectives,
            "loss": self._loss,
            "correct": self._correct,
            "seen": self.seen,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._objectives.copy_(state["objectives"])
        self._loss.copy_(state["loss"])
        self._correct.copy_(state["correct"])
        self.seen = state["seen"]
