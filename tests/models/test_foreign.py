"""models/foreign.py: the authors' weights give their numbers, and old weights the old ones."""

import hashlib

import pytest
import torch
import torch.nn.functional as F

from models import NETWORKS, build_model
from models.foreign import find_version, is_foreign, translate_state, upgrade_state
from models.vit import split_patches
from tests.helpers import OWN_NETWORKS
from tests.models.authors import AUTHORS, fill_entries, fill_images
from utils.errors import UserError

RENAMED = ("ViT", "Swin", "MLP")


def build_empty(name, **options):
    with torch.device("meta"):
        return build_model(name, 10, **options)


def describe_entries(state):
    return [" ".join([key, *map(str, value.shape)]) for key, value in state.items()]


def list_entries(name):
    """The entries of the authors' state_dict in its order."""
    return AUTHORS[name].get("entries") or describe_entries(build_empty(name).state_dict())


@pytest.mark.parametrize("name", AUTHORS)
def test_the_authors_weights_give_the_authors_numbers(name):
    truth, entries = AUTHORS[name], list_entries(name)
    assert hashlib.sha256("\n".join(entries).encode()).hexdigest() == truth["sha256_of_entries"]
    state = translate_state(name, fill_entries(entries))
    torch.manual_seed(0)
    model = build_model(name, 10).double().eval()
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == truth["parameters"]
    model.load_state_dict(state)
    with torch.no_grad():
        logits, features = model(fill_images())
    assert torch.equal(logits, model.fc(features))
    if name == "MLP":
        features = F.normalize(features)  # theirs returns them so, but its classifier uses ours
    for found, expected in ((logits, truth["logits"]), (features[:, :8], truth["features"])):
        expected = torch.tensor(expected, dtype=torch.float64)
        error = (found.double() - expected).abs().max() / expected.abs().max()
        assert error < 1e-6


@pytest.mark.parametrize("name", RENAMED)
def test_translation_changes_the_authors_keys_only(name):
    theirs = {key: torch.ones(()) for key in (line.split()[0] for line in list_entries(name))}
    ours = translate_state(name, theirs)
    assert is_foreign(name, theirs) and not is_foreign(name, ours)
    assert sorted(ours) == sorted(build_empty(name).state_dict())
    assert translate_state(name, ours) == ours  # the sign of fc.bias changes once
    assert ours["fc.bias"] == (-1 if name == "MLP" else 1)
    assert theirs["fc.bias"] == 1


@pytest.mark.parametrize("name", ["ResNet18", "DenseNet121"])
def test_keys_of_torchvision_stay(name):
    state = build_empty(name).state_dict()
    assert not is_foreign(name, state)
    assert translate_state(name, state) == state


@pytest.mark.parametrize("name", RENAMED)
def test_unknown_keys_stay(name):
    unknown = [
        "head.weight",
        "layers.2.weight",  # a ReLU of their MLP
        "layers.00.weight",
        f"layers.{'9' * 5000}.weight",
        "stage5.patch_partition.linear.weight",
        "stage1.layers.0.2.mlp_block.fn.norm.weight",
        "transformer.layers.0.0.fn.to_out.1.weight",
        "transformer.layers.0.0.norm.weight\n",
        "xLN.weight",
        "LN.weight.more",
    ]
    state = {key: torch.ones(2) for key in unknown}
    assert not is_foreign(name, state)
    assert translate_state(name, state) == state


def test_a_key_that_is_there_in_both_forms_is_not_lost():
    state = {"LN.bias": torch.zeros(2), "norm.bias": torch.ones(2), "cls_token": torch.ones(1)}
    assert list(translate_state("ViT", state)) == ["LN.bias", "norm.bias", "class_token"]
    assert translate_state("ViT", state)["norm.bias"].tolist() == [1, 1]


def test_a_merging_layer_of_another_shape_stays_for_torch_to_name():
    key = "stage2.patch_partition.linear.weight"
    for shape in [(8, 11), (1, 4), (0, 3), (8, 4, 2), ()]:
        weight = torch.ones(shape)
        assert translate_state("Swin", {key: weight})["layers.2.project.weight"] is weight


# --- older definitions ---------------------------------------------------------------------------


def test_versions():
    changed = {name for name, network in NETWORKS.items() if network.version == 2}
    assert changed == set(RENAMED)
    assert {network.version for network in NETWORKS.values()} == {1, 2}
    for name in OWN_NETWORKS:
        state = build_empty(name).state_dict()
        assert find_version(name, state) == NETWORKS[name].version
        assert upgrade_state(name, state, NETWORKS[name].version) == state


def test_an_old_mlp_computes_what_it_did():
    torch.manual_seed(0)
    model = build_model("MLP", 10, (3, 8, 8), width=32, depth=2).eval()
    state = fill_entries(describe_entries(model.state_dict()))
    old = {key: state[key].float() for key in state if key[-6:] != "0.bias"}
    assert len(old) == len(state) - 2
    images = torch.randn(5, 3, 8, 8)
    x = images.flatten(1)
    for layer in ("layers.0", "layers.1"):
        x = F.linear(x, old[f"{layer}.0.weight"])
        names = ("running_mean", "running_var", "weight", "bias")
        x = F.batch_norm(x, *(old[f"{layer}.1.{name}"] for name in names)).relu()
    logits = F.linear(x, old["fc.weight"]) - old["fc.bias"]

    assert find_version("MLP", old) == 1
    model.load_state_dict(upgrade_state("MLP", old, 1))
    assert list(upgrade_state("MLP", old, 1)) == list(model.state_dict())
    found, features = model(images)
    torch.testing.assert_close(features, x)
    torch.testing.assert_close(found, logits)


def test_an_old_vit_of_the_published_width_computes_what_it_did():
    torch.manual_seed(0)
    model = build_model("ViT", 10, (3, 8, 8), depth=1)
    patches = torch.nn.Conv2d(3, 512, kernel_size=2, stride=2)
    old = model.state_dict() | {"patches.weight": patches.weight.detach()}
    assert find_version("ViT", old) == 1
    upgraded = upgrade_state("ViT", old, 1)
    model.load_state_dict(upgraded)
    images = torch.randn(2, 3, 8, 8)
    expected = F.conv2d(images, patches.weight, old["patches.bias"], stride=2)
    expected = expected.flatten(2).transpose(1, 2)
    torch.testing.assert_close(model.patches(split_patches(images, 2)), expected)
    others = [key for key in old if key != "patches.weight"]
    assert all(upgraded[key] is old[key] for key in others)


@pytest.mark.parametrize(
    ("name", "key"), [("ViT", "blocks.0.mlp.0.weight"), ("Swin", "layers.0.norm.weight")]
)
def test_old_weights_of_another_network_are_refused(name, key):
    state = {key: torch.ones(64, 64), "patches.weight": torch.ones(64, 3, 4, 4)}
    assert find_version(name, state) == 1
    with pytest.raises(UserError, match=f"older definition of {name}.*commit 14c9aae") as error:
        upgrade_state(name, state, 1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "version"), [("ResNet18", 2), ("MLP", 3), ("MLP", 0)])
def test_unknown_versions_are_refused(name, version):
    known = NETWORKS[name].version
    with pytest.raises(UserError, match=f"version {version} of {name}.*up to {known}"):
        upgrade_state(name, {}, version)
