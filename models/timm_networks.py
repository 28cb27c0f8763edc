"""Networks of timm (Wightman 2019), by its names. timm is imported when one is built."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import logging
import os
import socket
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import getproxies

import torch
from torch import Tensor, nn

from models.layers import widen
from utils.console import list_some
from utils.errors import UserError

# What config.json keeps of timm's description of a network and its weights.
DESCRIBED = (
    "architecture",
    "tag",
    "hf_hub_id",
    "url",
    "input_size",
    "fixed_input_size",
    "interpolation",
    "crop_pct",
    "mean",
    "std",
    "num_classes",
    "license",
)
HUB = "https://huggingface.co"
SHOWN = 3  # names of a list that a message shows


class TimmNetwork(nn.Module):
    """A network of timm without its classifier, and ours on top.

    Args:
        backbone: maps images [B, C, H, W] to features [B, d]: timm's with `num_classes=0`.
        feature_dim: d.
        description: the name and version of the library, what timm says of the network's weights.
        unused: the entries of a file of weights that the network has no place for.

    The caller sets `fc` to a classifier of `feature_dim` features.
    """

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int,
        description: dict[str, Any],
        unused: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.backbone, self.feature_dim = backbone, feature_dim
        self.description, self.unused = description, unused
        self.fc: nn.Module = nn.Identity()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images [B, C, H, W] -> (logits [B, K], features [B, d]), both float32."""
        features = widen(self.backbone(images))
        return self.fc(features), features


def build(
    name: str,
    image_shape: tuple[int, int, int],
    pretrained: bool = False,
    weights: str | None = None,
) -> TimmNetwork:
    """Build timm's network `name` for images of `image_shape` (C, H, W), still without classifier.

    Args:
        name: a name of timm's, with or without the tag of its weights.
        image_shape: (C, H, W) in pixels.
        pretrained: start from timm's weights; timm fits them to channels and size of the images.
        weights: the file that holds them; None: from the hub, or its cache.

    Raises:
        UserError: timm is missing, does not know the name or has no weights of it; the weights
            cannot be had or do not fit; the network cannot take such images.
    """
    timm = _import_timm(pretrained and weights is None)
    config = _find_config(timm, name)
    if pretrained and weights is None and not (config.hf_hub_id or config.url or config.file):
        raise UserError(f"--pretrained: timm has no weights of {name}; --weights FILE names some")
    if weights is not None and not Path(weights).is_file():
        raise UserError(f"--weights {weights} is not a file")
    options: dict[str, Any] = {"num_classes": 0, "in_chans": image_shape[0]}
    loaded: list[Any] = []
    if pretrained:
        options["pretrained"] = True
        options["pretrained_cfg_overlay"] = {"file": weights} if weights else None
    try:
        with _watch_loading(loaded):
            backbone = _create(timm, name, image_shape, options)
    except Exception as error:
        raise UserError(_explain_failure(name, config, image_shape, weights, error)) from error
    unused = _check_loaded(weights or name, loaded)
    backbone.requires_grad_(True)
    feature_dim = _find_feature_dim(name, backbone, image_shape)
    return TimmNetwork(backbone, feature_dim, _describe(timm, backbone), unused)


def _import_timm(from_hub: bool) -> Any:
    if from_hub and _is_offline():
        # Without it the hub's client tries for most of a minute before it looks into its cache.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise UserError("--model timm:NAME needs the package timm: pip install timm") from error


def _is_offline() -> bool:
    """Return whether the hub's address is unknown here, and no proxy could know it."""
    if getproxies():
        return False
    host = os.environ.get("HF_ENDPOINT", HUB).partition("://")[2].partition("/")[0]
    try:
        socket.getaddrinfo(host.partition(":")[0], 443)
    except OSError:
        return True
    return False


def _find_config(timm: Any, name: str) -> Any:
    """Return timm's description of a network's weights. Raises UserError for an unknown name."""
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), cutoff=0.55)
        advice = f"near are {', '.join(near)}" if near else "timm.list_models() lists the names"
        raise UserError(f"timm {timm.__version__} has no network {architecture!r}: {advice}")
    tagged = timm.list_models(f"{architecture}.*", pretrained=True)
    if tag and name not in tagged:
        tags = ", ".join(one.partition(".")[2] for one in tagged) or "none"
        raise UserError(f"timm {timm.__version__} has no weights {tag!r} of {architecture}: {tags}")
    return timm.models.get_pretrained_cfg(name) or timm.models.PretrainedCfg()


def _create(
    timm: Any, name: str, image_shape: tuple[int, int, int], options: dict[str, Any]
) -> nn.Module:
    """Build a network for images of this size, if it depends on their size at all."""
    _, height, width = image_shape
    size = height if height == width else (height, width)
    try:
        backbone: nn.Module = timm.create_model(name, img_size=size, **options)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        backbone = timm.create_model(name, **options)
    return backbone


@contextlib.contextmanager
def _watch_loading(loaded: list[Any]) -> Iterator[None]:
    """Collect what `load_state_dict` returns, and keep timm from logging it.

    timm only logs the names that a file lacks, and leaves the network as it was drawn there.
    """
    original, logger = nn.Module.load_state_dict, logging.getLogger("timm")
    level = logger.level

    def load(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        loaded.append(original(self, *args, **kwargs))
        return loaded[-1]

    logger.setLevel(logging.CRITICAL)
    nn.Module.load_state_dict = load  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.load_state_dict = original  # type: ignore[method-assign]
        logger.setLevel(level)


def _check_loaded(source: str, loaded: list[Any]) -> tuple[str, ...]:
    """Return the entries that found no place. Raises UserError if the network needs others."""
    if not loaded:
        return ()
    missing, unused = loaded[-1].missing_keys, loaded[-1].unexpected_keys
    if missing:
        has = f", it has {list_some(unused, SHOWN)}" if unused else ""
        lacks = list_some(missing, SHOWN)
        raise UserError(f"{source} does not fit the network: it lacks {lacks}{has}")
    return tuple(unused)


def _explain_failure(
    name: str, config: Any, image_shape: tuple[int, int, int], weights: str | None, error: Exception
) -> str:
    """Explain in one line why timm could not build a network or load its weights."""
    reason = textwrap.shorten(str(error) or type(error).__name__, 160, placeholder=" …")
    if weights is not None:
        return f"--weights {weights}: timm cannot load it into {name} ({reason})"
    if isinstance(error, OSError):
        where = f"{HUB}/{config.hf_hub_id}" if config.hf_hub_id else config.url
        return (
            f"--pretrained: the weights of {name} are neither here nor can they be fetched; "
            f"fetch them from {where} and give --weights FILE"
        )
    return f"timm:{name} cannot be built for images of {_describe_size(image_shape)} ({reason})"


def _describe_size(image_shape: tuple[int, int, int]) -> str:
    channels, height, width = image_shape
    return f"{width}×{height} pixels and {channels} channels"


@torch.no_grad()
def _find_feature_dim(name: str, backbone: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Return d, found by passing one black image. Raises UserError if the network cannot take it.

    timm's attributes name other sizes for some networks, whose heads have layers of their own.
    """
    was_training = backbone.training
    backbone.eval()
    try:
        with torch.random.fork_rng(devices=[]):
            features = backbone(torch.zeros(1, *image_shape))
        shape = tuple(features.shape)
    except Exception as error:
        own = getattr(backbone, "pretrained_cfg", {}).get("input_size")
        advice = f"; timm's own size is {own[-1]}: give --img_size" if own else ""
        reason = textwrap.shorten(str(error) or type(error).__name__, 90, placeholder=" …")
        raise UserError(
            f"timm:{name} cannot take images of {_describe_size(image_shape)} ({reason}){advice}"
        ) from error
    finally:
        backbone.train(was_training)
    if len(shape) != 2:
        raise UserError(f"timm:{name} gives no vector of features, but a shape of {list(shape)}")
    return int(shape[1])


def _describe(timm: Any, backbone: Any) -> dict[str, Any]:
    config = dict(getattr(backbone, "pretrained_cfg", {}))
    known = {key: config[key] for key in DESCRIBED if config.get(key) not in (None, "")}
    known = {k: list(v) if isinstance(v, tuple) else v for k, v in known.items()}
    return {"library": "timm", "version": str(timm.__version__), **known}
