"""The bias that minimises a loss while all scores are 0. Imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Sequence

from theory.problem import BIAS_MODES, LOSSES, check_choice


def find_prior_biases(
    loss: str, class_sizes: Sequence[float], smoothing: float = 0.0, bias_mode: str = "diverse"
) -> list[float]:
    """Return the biases b that minimise the mean loss of the logits z = −b.

    With the mean target of class k over the samples, p_k = (1 − s) n_k/N + s/K:

        BCE: b_k = −logit p_k        MSE: b_k = −p_k        CE: b_k = −ln p_k, shifted to mean 0

    (CE does not see a common shift.) One bias for all classes minimises the mean over the classes,
    whose mean target is 1/K whatever their sizes: ln(K − 1) for BCE, −1/K for MSE, any number for
    CE, of which this is 0. A decay of the bias is not part of this.

    Args:
        loss: "CE", "BCE" or "MSE".
        class_sizes: n_k ≥ 0, the samples of each of K ≥ 2 classes; only their shares matter.
        smoothing: s in [0, 1).
        bias_mode: "diverse" or "unified" (then all K values are equal).

    Returns:
        K values.

    Raises:
        ValueError: an unknown loss or kind of bias, or the bias of a class would be infinite.
    """
    check_choice("loss", loss, LOSSES)
    check_choice("bias_mode", bias_mode, BIAS_MODES[:2])
    count, total = len(class_sizes), math.fsum(class_sizes)
    if bias_mode == "unified":
        return [{"BCE": math.log(count - 1), "MSE": -1 / count, "CE": 0.0}[loss]] * count
    own = [(1 - smoothing) * size + smoothing * total / count for size in class_sizes]
    if loss == "MSE":
        return [-each / total for each in own]
    for index, each in enumerate(own):
        if not 0 < each < total:
            raise ValueError(f"class {index} has {class_sizes[index]:g} of {total:g} samples")
    if loss == "BCE":
        return [math.log((total - each) / each) for each in own]
    # Of equal numbers the mean is exact, so that equal classes get zeros.
    logs = [math.log(each / own[0]) for each in own]
    mean = math.fsum(logs) / count
    return [mean - each for each in logs]
