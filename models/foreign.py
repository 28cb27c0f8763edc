"""State_dicts of the authors' code and of older definitions of our networks, made loadable.

The authors' ViT, Swin and MLP name their entries differently. Their ResNet and DenseNet have the
names of ours, which are torchvision's. timm's names lie under `backbone.` in ours.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

from torch import Tensor

from models import OLD_COMMIT, find_network
from models.vit import HIDDEN_WIDTH
from utils.errors import UserError

Rename = str | Callable[[re.Match[str]], str]


def _rename_swin_stage(match: re.Match[str]) -> str:
    return f"layers.{2 * int(match['stage']) - 2}.project.{match['end']}"


def _rename_swin_block(part: str) -> Callable[[re.Match[str]], str]:
    def rename(match: re.Match[str]) -> str:
        # Their stages consist of pairs of blocks: a plain one and a shifted one.
        stage, block = 2 * int(match["stage"]) - 1, 2 * int(match["pair"]) + int(match["half"])
        return f"layers.{stage}.{block}.{part}{match['end']}"

    return rename


def _rename_mlp_entry(match: re.Match[str]) -> str:
    # Their layers are one flat sequence: Linear, BatchNorm, ReLU, Linear, …
    layer, part = divmod(int(match["index"]), 3)
    return match[0] if part == 2 else f"layers.{layer}.{part}.{match['end']}"


_NUMBER = r"(0|[1-9][0-9]{0,2})"
_END = r"(weight|bias)"
_VIT_BLOCK = rf"transformer\.layers\.{_NUMBER}"
_SWIN_BLOCK = rf"stage(?P<stage>[1-4])\.layers\.(?P<pair>{_NUMBER})\.(?P<half>[01])"
_SWIN_ATTENTION = rf"{_SWIN_BLOCK}\.attention_block\.fn\.fn"

# The authors' keys, as a pattern that the whole key has to match, and what they are in ours.
_RULES: dict[str, tuple[tuple[str, Rename], ...]] = {
    "ViT": (
        (r"pos_embedding", "position"),
        (r"cls_token", "class_token"),
        (rf"to_patch_embedding\.1\.{_END}", r"patches.\1"),
        (rf"{_VIT_BLOCK}\.0\.norm\.{_END}", r"blocks.\1.norm1.\2"),
        (rf"{_VIT_BLOCK}\.0\.fn\.to_qkv\.weight", r"blocks.\1.attention.qkv.weight"),
        (rf"{_VIT_BLOCK}\.0\.fn\.to_out\.0\.{_END}", r"blocks.\1.attention.out.\2"),
        (rf"{_VIT_BLOCK}\.1\.norm\.{_END}", r"blocks.\1.norm2.\2"),
        (rf"{_VIT_BLOCK}\.1\.fn\.net\.([03])\.{_END}", r"blocks.\1.mlp.\2.\3"),
        (rf"LN\.{_END}", r"norm.\1"),
    ),
    "Swin": (
        (
            rf"stage(?P<stage>[1-4])\.patch_partition\.linear\.(?P<end>{_END})",
            _rename_swin_stage,
        ),
        (
            rf"{_SWIN_BLOCK}\.attention_block\.fn\.norm\.(?P<end>{_END})",
            _rename_swin_block("norm1."),
        ),
        (
            rf"{_SWIN_ATTENTION}\.pos_embedding(?P<end>)",
            _rename_swin_block("attention.relative_bias"),
        ),
        (rf"{_SWIN_ATTENTION}\.to_qkv\.(?P<end>weight)", _rename_swin_block("attention.qkv.")),
        (rf"{_SWIN_ATTENTION}\.to_out\.(?P<end>{_END})", _rename_swin_block("attention.out.")),
        (rf"{_SWIN_BLOCK}\.mlp_block\.fn\.norm\.(?P<end>{_END})", _rename_swin_block("norm2.")),
        (
            rf"{_SWIN_BLOCK}\.mlp_block\.fn\.fn\.net\.(?P<end>[02]\.{_END})",
            _rename_swin_block("mlp."),
        ),
        (rf"LN\.{_END}", r"norm.\1"),
    ),
    "MLP": (
        (
            rf"layers\.(?P<index>{_NUMBER})\."
            r"(?P<end>weight|bias|running_mean|running_var|num_batches_tracked)",
            _rename_mlp_entry,
        ),
    ),
}
# Buffers that follow from the shape. Ours are not in the state_dict.
_SWIN_MASK = rf"{_SWIN_ATTENTION}\.(upper_lower|left_right)_mask"


def _translate_key(name: str, key: str) -> str:
    for pattern, rename in _RULES.get(name, ()):
        match = re.fullmatch(pattern, key)
        if match:
            return match.expand(rename) if isinstance(rename, str) else rename(match)
    if find_network(name).prefix and not key.startswith(("backbone.", "fc.")):
        return f"backbone.{key}"  # the library's own names
    return key


def is_foreign(name: str, state: Mapping[str, Tensor]) -> bool:
    """Return whether keys of `state` are those of the authors' network `name`, not of ours.

    It is False for ResNet and DenseNet, whose keys are the same in both.
    """
    return any(_translate_key(name, key) != key for key in state)


def translate_state(name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state_dict of the authors' network `name` with the keys and shapes of ours.

    Keys that are ours already and unknown ones are kept, and so is a key whose translation is in
    `state` too: `load_state_dict` then names it. The classifier of the authors' MLP adds its bias,
    and ours subtracts it: the sign changes. `state` itself is not changed.

    Args:
        name: the name of a network.
        state: a state_dict of the authors' network or of ours.
    """
    if not is_foreign(name, state):
        return dict(state)
    translated: dict[str, Tensor] = {}
    for key, value in state.items():
        if name == "Swin" and re.fullmatch(_SWIN_MASK, key):
            continue
        ours = _translate_key(name, key)
        if ours != key and (ours in state or ours in translated):
            ours = key
        translated[ours] = _translate_value(name, ours, value)
    return translated


def _translate_value(name: str, key: str, value: Tensor) -> Tensor:
    if name == "MLP" and key == "fc.bias":
        return -value
    if name == "Swin" and re.fullmatch(r"layers\.[246]\.project\.weight", key) and value.ndim == 2:
        return _reorder_merged_patches(value)
    return value


def _reorder_merged_patches(weight: Tensor) -> Tensor:
    """Reorder the inputs of a merging layer, [2C, C·f·f] -> [2C, f·f·C].

    The authors' patches are in the order channel, row, column; ours row, column, channel.
    """
    channels = weight.shape[0] // 2
    factor = math.isqrt(weight.shape[1] // max(1, channels))
    if channels * factor**2 != weight.shape[1]:
        return weight
    return weight.unflatten(1, (channels, factor, factor)).permute(0, 2, 3, 1).flatten(1)


def find_version(name: str, state: Mapping[str, Tensor]) -> int:
    """Return the version of our network `name` that a state_dict with our keys belongs to.

    For files without a config.json. The versions of a network differ in keys or shapes.
    """
    patches = state.get("patches.weight")
    is_old = {
        "MLP": any(_lacks_bias(state, key) for key in state),
        "ViT": patches is not None and patches.ndim == 4,
        "Swin": "layers.0.norm.weight" in state,
    }
    return 1 if is_old.get(name) else find_network(name).version


def upgrade_state(name: str, state: Mapping[str, Tensor], version: int) -> dict[str, Tensor]:
    """Return a state_dict of an older definition of our network, for the present one.

    The returned weights compute in evaluation what the given ones computed in their network. The
    MLP of version 1 had no biases in its linear layers: they are zero. The ViT of version 1 cut its
    patches by a convolution, and its MLP was as wide as its tokens: with the default width of 512
    it is the same network.

    Args:
        name: the name of a network.
        state: with our keys.
        version: `Network.version` of the network that has these weights; 1 where none is recorded.

    Raises:
        UserError: the present network cannot compute what that version computed, or this program
            does not know that version.
    """
    known = find_network(name).version
    if version == known:
        return dict(state)
    if not 1 <= version < known:
        raise UserError(
            f"the weights are of version {version} of {name}, but this program knows versions up "
            f"to {known}: use the program that wrote them, or a newer one"
        )
    if name == "MLP":
        return _add_zero_biases(state)
    hidden = state.get("blocks.0.mlp.0.weight")
    if name == "ViT" and hidden is not None and hidden.shape[:1] == (HIDDEN_WIDTH,):
        return {key: _flatten_patches(key, value) for key, value in state.items()}
    raise UserError(
        f"the weights are of an older definition of {name} (version {version}, now {known}): "
        f"commit {OLD_COMMIT} of this program reads them"
    )


def _lacks_bias(state: Mapping[str, Tensor], key: str) -> bool:
    """Return whether `key` is the weight of a hidden linear layer of our MLP without bias."""
    is_linear = re.fullmatch(r"layers\.[0-9]+\.0\.weight", key)
    return is_linear is not None and key.removesuffix("weight") + "bias" not in state


def _add_zero_biases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    upgraded: dict[str, Tensor] = {}
    for key, value in state.items():
        upgraded[key] = value
        if _lacks_bias(state, key):
            upgraded[key.removesuffix("weight") + "bias"] = value.new_zeros(value.shape[:1])
    return upgraded


def _flatten_patches(key: str, value: Tensor) -> Tensor:
    """Return the patches' convolution [width, C, side, side] as a matrix [width, side·side·C]."""
    if key != "patches.weight" or value.ndim != 4:
        return value
    return value.permute(0, 2, 3, 1).flatten(1)
