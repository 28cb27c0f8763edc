"""Every network: parameters counted by hand, torchvision as truth, shapes, attention, errors."""

import itertools
import math
from functools import cache

import pytest
import torch
import torchvision
from torch.nn import functional as F
from torchvision.models.swin_transformer import ShiftedWindowAttention

from models import build_model, check_name, find_network, share_definition, swin, vit
from tests.helpers import OWN_NETWORKS
from utils.errors import UserError

SMALL_BUILDS = {
    "ViT": {"width": 32, "depth": 2},
    "Swin": {"width": 32},
    "MLP": {"width": 16, "depth": 2},
}


@cache
def network(name, side, **options):
    """A network of 10 classes in eval mode, shared by the tests that do not change it."""
    torch.manual_seed(0)
    return build_model(name, 10, (3, side, side), **options).eval()


def count(model):
    return sum(p.numel() for p in model.parameters())


# --- parameters, from the shapes of the layers ---------------------------------------------------


def conv(inputs, outputs, kernel):
    return inputs * outputs * kernel**2


def norm(channels):
    return 2 * channels


def linear(inputs, outputs):
    return inputs * outputs + outputs


def basic_block(inputs, planes):
    shortcut = conv(inputs, planes, 1) + norm(planes) if inputs != planes else 0
    return conv(inputs, planes, 3) + conv(planes, planes, 3) + 2 * norm(planes) + shortcut


def bottleneck(inputs, planes):
    convs = conv(inputs, planes, 1) + conv(planes, planes, 3) + conv(planes, 4 * planes, 1)
    shortcut = conv(inputs, 4 * planes, 1) + norm(4 * planes) if inputs != 4 * planes else 0
    return convs + 2 * norm(planes) + norm(4 * planes) + shortcut


def resnet_parameters(block, expansion, layers, classes=10):
    total, channels = conv(3, 64, 3) + norm(64), 64
    for planes, depth in zip((64, 128, 256, 512), layers, strict=True):
        for _ in range(depth):
            total += block(channels, planes)
            channels = expansion * planes
    return total + linear(channels, classes)


def densenet_parameters(growth, stem, blocks, classes=10):
    total, channels = conv(3, stem, 7) + norm(stem), stem
    for index, depth in enumerate(blocks):
        if index > 0:
            total += norm(channels) + conv(channels, channels // 2, 1)
            channels //= 2
        for _ in range(depth):
            total += norm(channels) + conv(channels, 4 * growth, 1)
            total += norm(4 * growth) + conv(4 * growth, growth, 3)
            channels += growth
    return total + norm(channels) + linear(channels, classes)


def vit_parameters(width, depth, patch, patches, classes=10):
    attention = width * 3 * 640 + linear(640, width)
    block = 2 * norm(width) + attention + linear(width, 512) + linear(512, width)
    embedding = linear(3 * patch**2, width) + width + (patches + 1) * width
    return embedding + depth * block + norm(width) + linear(width, classes)


def swin_parameters(width, factors, windows, classes=10):
    total = linear(3 * factors[0] ** 2, width)
    for index, (depth, window) in enumerate(zip((2, 2, 6, 2), windows, strict=True)):
        if index > 0:
            total += linear(factors[index] ** 2 * width, 2 * width)
            width *= 2
        table = (2 * window - 1) ** 2
        attention = width * 3 * width + linear(width, width) + table
        mlp = linear(width, 4 * width) + linear(4 * width, width)
        total += depth * (2 * norm(width) + attention + mlp)
    return total + norm(width) + linear(width, classes)


def mlp_parameters(inputs, width, depth, classes=10):
    hidden = linear(inputs, width) + (depth - 1) * linear(width, width)
    return hidden + depth * norm(width) + linear(width, classes)


BY_HAND_AT_32 = {
    "ResNet18": resnet_parameters(basic_block, 1, (2, 2, 2, 2)),
    "ResNet34": resnet_parameters(basic_block, 1, (3, 4, 6, 3)),
    "ResNet50": resnet_parameters(bottleneck, 4, (3, 4, 6, 3)),
    "ResNet101": resnet_parameters(bottleneck, 4, (3, 4, 23, 3)),
    "DenseNet121": densenet_parameters(16, 32, (6, 12, 24, 16)),
    "DenseNet161": densenet_parameters(48, 96, (6, 12, 36, 24)),
    "ViT": vit_parameters(512, 6, patch=4, patches=64),
    "Swin": swin_parameters(96, (2, 2, 2, 1), (4, 4, 4, 4)),
    "MLP": mlp_parameters(3 * 32 * 32, 1024, 6),
}


def test_published_counts():
    assert BY_HAND_AT_32["ResNet18"] == 11_173_962
    assert BY_HAND_AT_32["Swin"] == 26_598_646
    assert swin_parameters(96, (2, 2, 2, 1), (4, 4, 4, 4), classes=100) == 26_667_856


@pytest.mark.parametrize("name", OWN_NETWORKS)
def test_parameters_at_32_pixels_by_hand(name):
    with torch.device("meta"):
        model = build_model(name, 10)
    assert count(model) == BY_HAND_AT_32[name]


PUBLISHED = {"ResNet50": 25_557_032, "ResNet101": 44_549_160, "DenseNet161": 28_681_000}


@pytest.mark.parametrize("name", [name for name in OWN_NETWORKS if name[:3] in ("Res", "Den")])
def test_entries_at_224_pixels_are_torchvisions(name):
    with torch.device("meta"):
        model = build_model(name, 1000, (3, 224, 224))
        truth = getattr(torchvision.models, name.lower())()
    shapes = {key.replace("classifier.", "fc."): x.shape for key, x in truth.state_dict().items()}
    assert {key: x.shape for key, x in model.state_dict().items()} == shapes
    assert count(model) == count(truth) == PUBLISHED.get(name, count(truth))


def test_options_change_the_network():
    with torch.device("meta"):
        narrow_vit = build_model("vit", 10, patch_size=8, width=128, depth=2)
        narrow_swin = build_model("swin", 10, patch_size=4, width=64)
        narrow_mlp = build_model("mlp", 10, width=32, depth=1)
    assert count(narrow_vit) == vit_parameters(128, 2, patch=8, patches=16)
    assert count(narrow_swin) == swin_parameters(64, (4, 2, 2, 1), (4, 4, 2, 2))
    assert count(narrow_mlp) == mlp_parameters(3 * 32 * 32, 32, 1)


# --- torchvision as truth ------------------------------------------------------------------------


def draw_entry(key, shape):
    """A weight or a buffer with which a network passes numbers of about 1 on."""
    if key.endswith("running_var") or (len(shape) == 1 and key.endswith("weight")):
        return torch.rand(shape) + 0.5
    scale = math.sqrt(2 / math.prod(shape[1:])) if len(shape) > 1 else 0.1
    return scale * torch.randn(shape)


@pytest.mark.parametrize(
    ("name", "side"),
    [("ResNet18", 64), ("DenseNet121", 64), *((name, 224) for name in PUBLISHED)],
)
def test_torchvision_weights_give_torchvision_logits(name, side):
    torch.manual_seed(0)
    with torch.device("meta"):  # no weights are drawn that are not used
        truth = getattr(torchvision.models, name.lower())(num_classes=10).eval()
        model = build_model(name, 10, (3, side, side)).eval()
    drawn = {key: draw_entry(key, entry.shape) for key, entry in truth.state_dict().items()}
    truth.load_state_dict(drawn, assign=True)
    state = {key.replace("classifier.", "fc."): entry for key, entry in drawn.items()}
    assert list(model.state_dict()) == list(state)
    model.load_state_dict(state | {"fc.bias": -state["fc.bias"]}, assign=True)
    images = torch.randn(2 if side < 224 else 1, 3, side, side)
    with torch.no_grad():
        logits, features = model(images)
        torch.testing.assert_close(logits, truth(images))
    assert features.shape[1] == model.feature_dim and logits.std() > 0.1


@pytest.mark.parametrize("name", ["ResNet18", "DenseNet121"])
def test_small_images_keep_torchvisions_names(name):
    with torch.device("meta"):
        model, truth = build_model(name, 10), getattr(torchvision.models, name.lower())()
    names = [key.replace("classifier.", "fc.") for key in truth.state_dict()]
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("shift", [0, 2])
def test_window_attention_is_torchvisions(shift):
    torch.manual_seed(0)
    ours = swin.WindowAttention(64, side=8, window=4, shift=shift)
    truth = ShiftedWindowAttention(64, [4, 4], [shift, shift], num_heads=2)
    truth.qkv.load_state_dict(ours.qkv.state_dict() | {"bias": torch.zeros(192)})
    truth.proj.load_state_dict(ours.out.state_dict())
    # torchvision counts offsets from the key to the query, and has a table for each head.
    table = ours.relative_bias.detach().flip(0, 1).flatten()[:, None]
    truth.relative_position_bias_table.data.copy_(table.expand(-1, 2))
    maps = torch.randn(3, 8, 8, 64)
    torch.testing.assert_close(ours(maps), truth(maps), atol=1e-5, rtol=1e-4)


# --- shapes, gradients, precision, compilation ---------------------------------------------------

SHAPES = [(name, 8) for name in ("ResNet18", "ResNet34", "ResNet50", "DenseNet121")]
SHAPES += [(name, 32) for name in ("ResNet18", "DenseNet121")]
SHAPES += [(name, side) for name in ("ViT", "Swin", "MLP") for side in (8, 32, 64)]
SHAPES += [("DenseNet121", 64), ("Swin", 224)]
FEATURES = {
    "ResNet18": 512,
    "ResNet34": 512,
    "ResNet50": 2048,
    "ViT": 512,
    "Swin": 768,
    "MLP": 1024,
}


@pytest.mark.parametrize(("name", "side"), SHAPES)
def test_output_shapes(name, side):
    model = network(name, side)
    with torch.no_grad():
        logits, features = model(torch.randn(2, 3, side, side))
    # The paper halves DenseNet121 for small images.
    dim = FEATURES.get(name) or (512 if side < 64 else 1024)
    assert model.feature_dim == dim
    assert logits.shape == (2, 10) and features.shape == (2, dim)
    assert logits.isfinite().all()
    assert torch.equal(logits, model.fc(features))


@pytest.mark.parametrize("name", ["ResNet18", "DenseNet121", "ViT", "MLP"])
def test_rectangular_grey_images(name):
    model = build_model(name, 3, (1, 8, 24), **SMALL_BUILDS.get(name, {})).eval()
    logits, _ = model(torch.randn(2, 1, 8, 24))
    assert logits.shape == (2, 3)


def test_small_stems_keep_the_published_resolution():
    images = torch.randn(1, 3, 32, 32)
    resnet, densenet = network("ResNet18", 32), network("DenseNet121", 32)
    with torch.no_grad():
        assert resnet.maxpool(resnet.conv1(images)).shape == (1, 64, 32, 32)
        assert densenet.features[:4](images).shape == (1, 32, 16, 16)
        assert densenet.features(images).shape == (1, 512, 2, 2)


def test_densenet_pools_odd_maps_as_torchvision_does():
    maps, sides = torch.randn(1, 3, 28, 28), []
    with torch.no_grad():
        for key, layer in network("DenseNet121", 28).features.named_children():
            maps = layer(maps)
            sides += [maps.shape[-1]] if key.startswith(("pool", "transition")) else []
    assert sides == [14, 7, 3, 1]


@pytest.mark.parametrize("name", ["ResNet18", "ResNet50", "DenseNet121", "ViT", "Swin", "MLP"])
def test_gradient_reaches_every_parameter(name):
    torch.manual_seed(0)
    # In a shifted 2×2 window every pixel is alone, and its table without effect.
    side = 16 if name == "Swin" else 8
    model = build_model(name, 10, (3, side, side), **SMALL_BUILDS.get(name, {}))
    logits, _ = model(torch.randn(8, 3, side, side))
    F.cross_entropy(logits, torch.arange(8)).backward()
    idle = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


@pytest.mark.parametrize("name", ["ResNet18", "ViT", "Swin", "MLP"])
def test_channels_last_images_give_the_same_logits(name):
    model, images = network(name, 8), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected, _ = model(images)
        logits, _ = model(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["ResNet18", "ViT", "Swin", "MLP"])
def test_logits_are_float32_under_autocast(name):
    model, images = network(name, 8), torch.randn(2, 3, 8, 8)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits, features = model(images)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, F.linear(features.float(), model.fc.weight) - model.fc.bias)


def test_same_seed_same_network():
    for name, options in SMALL_BUILDS.items():
        torch.manual_seed(1)
        first = build_model(name, 10, (3, 8, 8), **options).state_dict()
        torch.manual_seed(1)
        second = build_model(name, 10, (3, 8, 8), **options).state_dict()
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_classifier_options_reach_the_classifier():
    model = build_model(
        "MLP",
        4,
        (1, 8, 8),
        width=8,
        depth=1,
        bias_mode="unified",
        bias_init_mean=10,
        fixed_etf=True,
    )
    assert model.fc.bias.shape == (1,)
    assert model.fc.bias.item() == pytest.approx(10, abs=0.36)  # ± 1/√8
    assert not model.fc.weight.requires_grad
    assert build_model("MLP", 4, width=8, bias_init_mode=1).fc.bias.tolist() == [0, 1, 2, 3]


# --- attention -----------------------------------------------------------------------------------


def test_vit_attention_is_an_explicit_softmax():
    torch.manual_seed(0)
    attention, tokens = vit.Attention(48).eval(), torch.randn(2, 5, 48)
    q, k, v = (tokens @ attention.qkv.weight.T).split(640, dim=-1)
    heads = []
    for head in range(10):
        part = slice(64 * head, 64 * (head + 1))
        scores = q[..., part] @ k[..., part].transpose(1, 2) / 8  # √64
        heads.append(scores.softmax(dim=-1) @ v[..., part])
    expected = attention.out(torch.cat(heads, dim=-1))
    torch.testing.assert_close(attention(tokens), expected)


def test_vit_drops_out_the_output_of_attention_in_training_only():
    torch.manual_seed(0)
    attention, tokens = vit.Attention(32), torch.randn(2, 5, 32)
    dropped = attention(tokens) == 0
    assert dropped.any() and not torch.equal(attention(tokens) == 0, dropped)
    attention.dropout.p = 0
    assert torch.equal(attention(tokens), attention(tokens))  # no dropout of its weights
    attention.dropout.p = 0.2
    attention.eval()
    assert torch.equal(attention(tokens), attention(tokens))


def test_vit_cuts_patches_row_by_row_with_the_channel_last():
    images = torch.randn(2, 3, 4, 6)
    patches = vit.split_patches(images, 2)
    assert patches.shape == (2, 6, 12)
    for row, column, y, x, channel in itertools.product(*map(range, (2, 3, 2, 2, 3))):
        found = patches[:, 3 * row + column, 6 * y + 3 * x + channel]
        assert torch.equal(found, images[:, channel, 2 * row + y, 2 * column + x])


def test_positions_start_from_a_standard_normal():
    torch.manual_seed(0)
    model = build_model("ViT", 10, depth=1)
    tables = [
        block.attention.relative_bias
        for stage in network("Swin", 32).layers[1::2]
        for block in stage
    ]
    assert [table.shape for table in tables] == 12 * [(7, 7)]
    for values in (model.position, model.class_token, torch.stack(tables)):
        count = values.numel()
        assert abs(values.std() - 1) < 4 / (2 * count) ** 0.5
        assert abs(values.mean()) < 4 / count**0.5


def test_vit_distinguishes_positions_and_uses_every_patch():
    model = build_model("ViT", 4, (3, 8, 8), width=16, depth=1).eval()
    assert model.position.shape == (1, 17, 16)
    images = torch.randn(1, 3, 8, 8, requires_grad=True)
    logits, _ = model(images)
    logits[0, 0].backward()
    assert (images.grad != 0).all()
    assert not torch.allclose(model(images.flip(-1))[0], logits, atol=1e-6)


def reach(side, window, shift, row, column):
    """[side, side] bool: the pixels that the attention's output at (row, column) depends on."""
    torch.manual_seed(0)
    maps = torch.randn(1, side, side, 32, requires_grad=True)
    attention = swin.WindowAttention(32, side, window, shift)
    attention(maps)[0, row, column].sum().backward()
    return maps.grad[0].abs().sum(-1) > 0


def rectangle(side, rows, columns):
    mask = torch.zeros(side, side, dtype=torch.bool)
    mask[rows, columns] = True
    return mask


@pytest.mark.parametrize(
    ("side", "shift", "pixel", "rows", "columns"),
    [
        (8, 0, (0, 0), slice(0, 4), slice(0, 4)),
        (8, 0, (5, 3), slice(4, 8), slice(0, 4)),
        (8, 2, (0, 0), slice(0, 2), slice(0, 2)),  # shares a wrapped window with all four corners
        (8, 2, (7, 0), slice(6, 8), slice(0, 2)),
        (8, 2, (0, 4), slice(0, 2), slice(2, 6)),
        (8, 2, (7, 7), slice(6, 8), slice(6, 8)),
        (8, 2, (3, 3), slice(2, 6), slice(2, 6)),
        (4, 2, (0, 0), slice(0, 2), slice(0, 2)),  # the window covers the map
        (4, 2, (1, 3), slice(0, 2), slice(2, 4)),
        (4, 2, (3, 3), slice(2, 4), slice(2, 4)),
    ],
)
def test_windows_reach_no_further_than_the_image_allows(side, shift, pixel, rows, columns):
    assert torch.equal(reach(side, 4, shift, *pixel), rectangle(side, rows, columns))


def test_windows_survive_splitting_and_joining():
    maps = torch.arange(2 * 6 * 6 * 3).reshape(2, 6, 6, 3)
    windows = swin.split_windows(maps, 2)
    assert torch.equal(windows[1, 4], maps[1, 2:4, 2:4].reshape(4, 3))  # row 1, column 1 of 3×3
    assert torch.equal(swin.join_windows(windows, 6), maps)


@pytest.mark.parametrize(
    ("side", "windows", "shifts"),
    [
        (8, [4, 4, 2, 2], [2, 2, 1, 1]),  # maps of 8, 4, 2, 2 pixels
        (32, [4, 4, 4, 4], [2, 2, 2, 2]),  # 16, 8, 4, 4
        (64, [4, 4, 4, 2], [2, 2, 2, 1]),  # 16, 8, 4, 2
        (224, [7, 7, 7, 7], [3, 3, 3, 3]),  # 56, 28, 14, 7
    ],
)
def test_swin_windows_fit_every_stage(side, windows, shifts):
    with torch.device("meta"):
        stages = build_model("Swin", 10, (3, side, side)).layers[1::2]
    assert [stage[0].attention.window for stage in stages] == windows
    assert [stage[0].attention.shift for stage in stages] == [0, 0, 0, 0]
    assert [stage[1].attention.shift for stage in stages] == shifts


def test_swin_checkpoint_holds_parameters_only():
    model = network("Swin", 8)
    assert list(model.state_dict()) == [key for key, _ in model.named_parameters()]


# --- names and errors ----------------------------------------------------------------------------


def test_names_are_case_insensitive():
    shape, options = (3, 8, 8), {"width": 32}
    found = [build_model(name, 3, shape, **options) for name in ("MLP", "mlp", "Vit", "sWIN")]
    assert [type(each).__name__ for each in found] == ["MLP", "MLP", "ViT", "Swin"]


def test_a_family_takes_every_name_with_its_prefix():
    assert check_name("TIMM:resnet18.a1_in1k") == "timm:resnet18.a1_in1k"
    assert find_network("timm:anything").prefix
    for name in ("timm:", "timm:hf-hub:a/b", "timm:../x", "timm:-x", "timm"):
        with pytest.raises(UserError, match=r"timm:NAME"):
            check_name(name)
    assert share_definition("timm:resnet18.a1_in1k", "timm:resnet18")
    assert not share_definition("timm:resnet18", "timm:resnet34")
    assert not share_definition("ResNet18", "timm:resnet18")


@pytest.mark.parametrize(
    ("name", "shape", "options", "message"),
    [
        ("VGG16", (3, 32, 32), {}, "unknown model 'VGG16'.*ResNet18.*MLP"),
        ("ResNet18", (3, 32, 32), {"depth": 4}, "ResNet18 takes no depth .got 4.*none"),
        ("densenet121", (3, 32, 32), {"width": 4}, "DenseNet121 takes no width"),
        ("Swin", (3, 32, 32), {"depth": 4}, "Swin takes no depth.*patch_size, width"),
        ("MLP", (3, 32, 32), {"patch_size": 4}, "MLP takes no patch_size"),
        ("ViT", (3, 32, 32), {"depth": 0}, "depth of ViT is 0"),
        ("MLP", (3, 32, 32), {"width": -1}, "width of MLP is -1"),
        ("ViT", (3, 32, 32), {"patch_size": 5}, "32×32 images into patches of 5"),
        ("ViT", (3, 30, 32), {}, "30×32 images into patches of 4"),
        ("Swin", (3, 32, 64), {}, "square images.*32×64"),
        ("Swin", (3, 32, 32), {"width": 100}, "width of Swin is 100.*multiple of 32"),
        ("Swin", (3, 28, 28), {}, "shrinks images by 8.*side of 28"),
        ("Swin", (3, 100, 100), {}, "shrinks images by 32.*side of 100"),
    ],
)
def test_user_errors(name, shape, options, message):
    with pytest.raises(UserError, match=message) as error:
        build_model(name, 10, shape, **options)
    assert "\n" not in str(error.value)


def test_errors_of_the_classifier_pass_through():
    with pytest.raises(UserError, match="number of classes is 1"):
        build_model("MLP", 1, width=8)
    with pytest.raises(UserError, match=r"at least 9 features.*has 8"):
        build_model("MLP", 10, width=8, fixed_etf=True)
