"""State_dicts in files of other programs."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metrics.accuracy import compare_bias_signs
from metrics.extraction import Extracted
from models.foreign import find_version, is_foreign, translate_state, upgrade_state
from rundir.bare import Bare
from rundir.weights import Checkpoint, open_checkpoint
from utils.console import list_some
from utils.errors import UserError
from utils.world import ALONE, World

WRAPPERS = ("state_dict", "model_state_dict", "model", "net")  # keys that hold a state_dict
PREFIXES = ("module.", "model.", "_orig_mod.")  # of DataParallel, Lightning and torch.compile
# The other sign of a bias is clearly better by at least these standard errors and this share.
CLEAR_ERRORS, CLEAR_SHARE = 4.0, 0.01
SHOWN = 4  # keys of a list that a message names


def read_state(path: Path, bare: Bare, model: str, num_classes: int | None) -> dict[str, Tensor]:
    """Read a state_dict of another program, as `translate_content` returns it. Raises UserError."""
    with open_checkpoint(path) as checkpoint:
        content = read_content(checkpoint)
    return translate_content(path, content, bare, model, num_classes)


def read_content(checkpoint: Checkpoint) -> Any:
    """Read what torch.save or, where the name ends in .safetensors, safetensors has written.

    Raises a UserError that names the file.
    """
    if checkpoint.path.suffix == ".safetensors":
        return _read_safetensors(checkpoint)
    return checkpoint.load()


def translate_content(
    path: Path, raw: Any, bare: Bare, model: str, num_classes: int | None
) -> dict[str, Tensor]:
    """Give weights of another program the names and the signs of our networks.

    Args:
        path: the file, for messages.
        raw: its content.
        bare: what is known of the weights.
        model: the name of a network.
        num_classes: K; None if it is not known.

    Returns:
        Tensors by name, in float32 if they are of a floating type. The classifier is fc.

    Raises:
        UserError: there is no state_dict, or no weight that is its classifier.
    """
    state = _strip_prefixes(_unwrap(path, raw))
    state = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    state = _rename_classifier(path, state, bare.classifier, num_classes)
    # The translation of the authors' MLP changes the sign of the bias, which is added there.
    changes_sign = bare.bias_added and not (model == "MLP" and is_foreign(model, state))
    state = translate_state(model, state)
    if changes_sign and "fc.bias" in state:
        state["fc.bias"] = -state["fc.bias"]
    try:
        return upgrade_state(model, state, find_version(model, state))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def translate_own(path: Path, state: Any, model: str, version: int) -> dict[str, Tensor]:
    """Make a checkpoint's content, of a network of ours of that version, fit the present one.

    Raises UserError if it is no state_dict or the present network cannot compute what it did.
    """
    if not isinstance(state, dict):
        raise UserError(f"{path} holds a {type(state).__name__}, not a state_dict")
    try:
        return upgrade_state(model, state, version)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (AttributeError, TypeError) as error:
        raise UserError(f"{path} holds no state_dict") from error


def _read_safetensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    path = checkpoint.path
    try:
        from safetensors.torch import load as load_bytes
    except ImportError as error:
        raise UserError(f"{path} needs the package safetensors: pip install safetensors") from error
    try:
        loaded: dict[str, Tensor] = load_bytes(checkpoint.archive.content)
        return loaded
    except Exception as error:  # its errors have no common class but Exception
        reason = textwrap.shorten(str(error), 90, placeholder=" …")
        raise UserError(f"{path} is damaged or no file of safetensors ({reason})") from error


def _unwrap(path: Path, raw: Any) -> dict[str, Tensor]:
    """Return the tensors of a state_dict, which may lie in a dict of other things."""
    for _ in WRAPPERS:  # one may lie in another
        if isinstance(raw, Mapping):
            raw = next((raw[key] for key in WRAPPERS if isinstance(raw.get(key), Mapping)), raw)
    if not isinstance(raw, Mapping):
        raise UserError(f"{path} holds a {type(raw).__name__}, not a state_dict")
    state = {k: v for k, v in raw.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if not state:
        raise UserError(f"{path} holds no state_dict: its keys are {list_keys(list(raw))}")
    return state


def _strip_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take off the prefixes that most names share; the others are not of the network.

    Lightning keeps the network under `model.`, beside the buffers of losses and metrics.
    """
    while True:
        for prefix in PREFIXES:
            inside = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            if 2 * len(inside) > len(state):
                state = inside
                break
        else:
            return state


def _rename_classifier(
    path: Path, state: dict[str, Tensor], name: str, num_classes: int | None
) -> dict[str, Tensor]:
    """Give the classifier the name fc, if it has another. Raises UserError."""
    if not name:
        name = "fc" if "fc.weight" in state else _find_classifier(state, num_classes)
    if name == "fc" or not name:
        return state
    if f"{name}.weight" not in state:
        matrices = [key for key, value in state.items() if value.ndim == 2]
        raise UserError(
            f"--classifier {name}: {path} has no {name}.weight; its matrices are "
            f"{list_keys(matrices)}"
        )
    pattern = re.compile(rf"{re.escape(name)}\.(weight|bias)")
    return {pattern.sub(r"fc.\1", k) if pattern.fullmatch(k) else k: v for k, v in state.items()}


def _find_classifier(state: Mapping[str, Tensor], num_classes: int | None) -> str:
    """Return the name of the only matrix with a row for each class; "" if there are several."""
    names = [
        key.removesuffix(".weight")
        for key, value in state.items()
        if key.endswith(".weight") and value.ndim == 2 and len(value) == num_classes
    ]
    return names[0] if len(names) == 1 else ""


def find_bias_mode(path: Path, state: Mapping[str, Tensor]) -> str:
    """Return the kind of bias of a state's classifier. Raises UserError if it has none."""
    weight, bias = state.get("fc.weight"), state.get("fc.bias")
    if weight is None or weight.ndim != 2:
        raise UserError(
            f"{path} holds no classifier named fc: give --classifier; its keys are "
            f"{list_keys(list(state))}"
        )
    if bias is None:
        return "none"
    return "diverse" if bias.shape == weight.shape[:1] else "unified"


def explain_sign(
    bare: Bare, split: str, extracted: Extracted, classifier: Any, world: World = ALONE
) -> str | None:
    """Explain that the other sign of the bias classifies a split clearly better; None otherwise.

    The samples are those of this process; the answer is that of all processes of `world`.
    """
    if classifier.bias is None:
        return None
    read, other, errors = compare_bias_signs(
        extracted.features,
        extracted.labels,
        classifier.weight,
        classifier.bias_vector(),
        world,
    )
    if errors < CLEAR_ERRORS or other - read < CLEAR_SHARE:
        return None
    advice = "leave --bias_added out" if bare.bias_added else "give --bias_added"
    return (
        f"{100 * read:.2f} % of the {split} set is right, but {100 * other:.2f} % with the other "
        f"sign of the bias: {advice} if it fits the program that wrote the weights"
    )


def explain_misfit(model: torch.nn.Module, state: Mapping[str, Tensor]) -> str:
    """Explain why a state_dict does not fit a network: names that differ, or else shapes."""
    wanted = model.state_dict()
    missing = [key for key in wanted if key not in state]
    other = [key for key in state if key not in wanted]
    if missing or other:
        has = f"it has {list_keys(other)}" if other else "it lacks names"
        wants = f", the network wants {list_keys(missing)}" if missing else ""
        return f"{has}{wants}"
    for key, tensor in wanted.items():
        if state[key].shape != tensor.shape:
            found, expected = list(state[key].shape), list(tensor.shape)
            return f"{key} is {found}, the network wants {expected}"
    return "its values cannot be copied"


def explain_library(model: torch.nn.Module, recorded: Mapping[str, Any]) -> str:
    """Explain that another version of the library a network comes from was used; "" if not.

    Args:
        model: a network built here.
        recorded: what the run's config.json says of its network.
    """
    now: Any = getattr(model, "description", None)
    if now is None:
        return ""
    before = recorded.get(now["library"], {}).get("version")
    if before in (None, now["version"]):
        return ""
    return f"; it was trained with {now['library']} {before}, here is {now['version']}"


def list_keys(keys: Sequence[Any]) -> str:
    """List the first keys, and how many more there are."""
    return list_some(keys, SHOWN) or "none"
