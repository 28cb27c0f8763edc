"""The classifier on top of every network: z = W h − b.

The bias is subtracted, as in the paper: b is the threshold that a class's decision score w_k·h has
to pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import BIAS_MODES
from models.layers import widen
from utils.errors import UserError

BIAS_INIT_MODES = range(8)


def draw_initial_bias(num_classes: int, in_features: int, mode: int, mean: float) -> Tensor:
    """Draw the K biases of a new classifier in one of the paper's eight modes, plus `mean`.

    With k = 0 … K−1 and d = in_features:

        0  uniform in ±1/√d (global RNG)     4  ln(96k + 1)
        1  k                                 5  mode 4 reversed
        2  64k/K                             6  by quarters ln(96K), 0, ln(96K), 0
        3  mode 2 reversed                   7  by quarters 0, ln(96K), 0, ln(96K)

    The quarters begin at classes 0, ⌊K/4⌋, ⌊K/2⌋ and ⌊3K/4⌋, as in the authors' code. For K < 4
    some are empty: K = 2 has classes of the second and the last quarter only.

    Returns:
        [K] float32.

    Raises:
        UserError: a mode outside 0 … 7, or a mean that is not finite.
    """
    if mode not in BIAS_INIT_MODES:
        raise UserError(f"bias_init_mode is {mode}: it must be one of 0 to 7")
    if not math.isfinite(mean):
        raise UserError(f"bias_init_mean is {mean}: it must be a finite number")
    return _draw_bias_shape(num_classes, in_features, mode) + mean


def _draw_bias_shape(num_classes: int, in_features: int, mode: int) -> Tensor:
    k = torch.arange(num_classes)
    if mode == 0:
        return torch.empty(num_classes).uniform_(-1, 1) / math.sqrt(in_features)
    if mode == 1:
        return k.float()
    if mode in (2, 3):
        values = 64 * k / num_classes
        return values if mode == 2 else values.flip(0)
    if mode in (4, 5):
        values = (96 * k + 1).float().log()
        return values if mode == 4 else values.flip(0)
    cuts = torch.tensor([num_classes * quarter // 4 for quarter in (1, 2, 3)])
    odd_quarter = (k[:, None] >= cuts).sum(dim=1) % 2
    is_high = odd_quarter == (0 if mode == 6 else 1)
    return is_high.float() * math.log(96 * num_classes)


def draw_simplex_etf(num_classes: int, dim: int) -> Tensor:
    """Draw a randomly oriented simplex equiangular tight frame (the global RNG decides).

    Row k is √(K/(K−1)) Q u_k with u_k the k-th row of an orthonormal basis of the K-vectors of
    sum 0, and Q a random isometry of that space into R^d (Papyan, Han & Donoho 2020).
    Computed in float64.

    Returns:
        [K, d] float32: rows of unit length, every pairwise cosine −1/(K−1).

    Raises:
        UserError: K < 2, or d < K−1, where no such frame exists.
    """
    _check_num_classes(num_classes)
    if dim < num_classes - 1:
        raise UserError(
            f"a simplex ETF of {num_classes} classes needs at least {num_classes - 1} features, "
            f"but the model has {dim}: use a wider model or a trained classifier"
        )
    # The first column of Q is the constant vector, the others span the vectors of sum 0.
    constant_first = torch.eye(num_classes, dtype=torch.float64)
    constant_first[:, 0] = 1
    sum_zero = torch.linalg.qr(constant_first).Q[:, 1:]
    orientation, upper = torch.linalg.qr(torch.randn(dim, num_classes - 1, dtype=torch.float64))
    # LAPACK fixes the signs of R's diagonal in its own way. Undoing them makes Q Haar-uniform.
    orientation = orientation * upper.diagonal().sign()
    scale = math.sqrt(num_classes / (num_classes - 1))
    return (scale * sum_zero @ orientation.T).float()


class Classifier(nn.Module):
    """Linear classifier z = W h − b in float32, whatever the precision of the backbone.

    Args:
        in_features: d.
        num_classes: K ≥ 2.
        bias_mode: "diverse" (a bias per class, [K]), "unified" (one for all, [1]) or "none".
        bias_init_mode: 0 … 7, see `draw_initial_bias`. A unified bias is one draw of mode 0, or the
            mean of the K values of another mode.
        bias_init_mean: added to every initial bias.
        fixed_etf: hold the weight at a random simplex ETF of unit rows. It stays in the
            state_dict under the same name but receives no gradient.

    The weight [K, d] is Kaiming uniform with a = √5 as in the authors' code: uniform in ±1/√d.

    Raises:
        UserError: K < 2, an unknown bias_mode or bias_init_mode, a mean that is not finite, or
            fewer than K−1 features for the fixed ETF.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        bias_mode: str = "diverse",
        bias_init_mode: int = 0,
        bias_init_mean: float = 0.0,
        fixed_etf: bool = False,
    ) -> None:
        super().__init__()
        _check_num_classes(num_classes)
        if bias_mode not in BIAS_MODES:
            raise UserError(
                f"bias_mode is {bias_mode!r}: it must be one of {', '.join(BIAS_MODES)}"
            )
        self.in_features = in_features
        self.num_classes = num_classes
        self.bias_mode = bias_mode
        self.fixed_etf = fixed_etf
        if fixed_etf:
            self.weight = nn.Parameter(
                draw_simplex_etf(num_classes, in_features), requires_grad=False
            )
        else:
            self.weight = nn.Parameter(torch.empty(num_classes, in_features))
            nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        self._register_bias(bias_init_mode, bias_init_mean)

    def _register_bias(self, mode: int, mean: float) -> None:
        if self.bias_mode == "none":
            self.register_parameter("bias", None)
            return
        one_draw = self.bias_mode == "unified" and mode == 0
        bias = draw_initial_bias(1 if one_draw else self.num_classes, self.in_features, mode, mean)
        if self.bias_mode == "unified":
            bias = bias.mean(dim=0, keepdim=True)
        self.bias = nn.Parameter(bias)

    def begin_bias(self, values: float | Sequence[float]) -> None:
        """Replace the bias that was drawn by a number, or by one for each class."""
        assert self.bias is not None
        with torch.no_grad():
            self.bias.copy_(torch.as_tensor(values, dtype=torch.float64))

    def forward(self, features: Tensor) -> Tensor:
        """Map features [B, d] of any floating dtype -> logits [B, K] in float32 or better."""
        # The losses compare logits that differ by far less than bfloat16 resolves.
        with torch.autocast(features.device.type, enabled=False):
            scores = F.linear(widen(features), widen(self.weight))
            return scores if self.bias is None else scores - widen(self.bias)

    def bias_vector(self) -> Tensor:
        """Return the bias of each class, [K]: zeros without one, repeated if it is shared."""
        if self.bias is None:
            return self.weight.new_zeros(self.num_classes)
        return self.bias.expand(self.num_classes)

    def extra_repr(self) -> str:
        sizes = f"{self.in_features}, {self.num_classes}"
        return f"{sizes}, bias_mode={self.bias_mode!r}, fixed_etf={self.fixed_etf}"


def _check_num_classes(num_classes: int) -> None:
    if num_classes < 2:
        raise UserError(f"the number of classes is {num_classes}: a classifier needs at least 2")
