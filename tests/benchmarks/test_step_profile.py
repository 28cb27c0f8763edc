"""step_profile.py: oneDNN's report by hand, and the table adds up."""

import re

import pytest
import torch

from benchmarks import step_profile
from benchmarks.step_parts import REORDER, read_report, record_output

REPORT = """onednn_verbose,v1,info,cpu,runtime:OpenMP,nthr:2
onednn_verbose,v1,primitive,create:cache_miss,cpu,convolution,jit:avx,forward_training,f,,,{shape},9
onednn_verbose,v1,primitive,exec,cpu,reorder,jit:uni,undef,src:f32 dst:f32,,,64x3x3x3,0.25
onednn_verbose,v1,primitive,exec,cpu,convolution,jit:avx,forward_training,f,,alg:d,{shape},2.5
onednn_verbose,v1,primitive,exec,cpu,convolution,jit:avx,forward_training,f,,alg:d,{shape},1.5
onednn_verbose,v1,primitive,exec,cpu,convolution,jit:avx,backward_weights,f,,alg:d,{shape},4
""".format(shape="mb2_ic3oc5_ih8oh4kh3sh2dh0ph1_iw8ow4kw3sw2dw0pw1")


def test_a_report_by_hand():
    parts = read_report(REPORT)
    forward, weights = "convolutions, forward, 4×4", "convolutions, gradient of the weights, 4×4"
    assert parts.milliseconds == {REORDER: 0.25, forward: 4.0, weights: 4.0}
    products = 2 * 3 * 5 * 4 * 4 * 3 * 3
    assert parts.operations == {forward: 2 * 2 * products, weights: 2 * products}


def test_a_convolution_of_torch_is_reported_with_its_operations():
    layer, images = torch.nn.Conv2d(16, 32, 3, padding=1), torch.zeros(4, 16, 8, 8)
    with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
        report = record_output(lambda: layer(images))
    parts = read_report(report)
    operations = parts.operations["convolutions, forward, 8×8"]
    assert operations == 2 * 4 * 16 * 32 * 8 * 8 * 3 * 3


@pytest.mark.slow
def test_the_parts_add_up_to_the_step(capsys):
    flags = ["--img_size", "8", "--batch_size", "4", "--precision", "fp32", "--repeats", "1"]
    assert step_profile.main(flags) == 0
    out = capsys.readouterr().out
    rows = re.findall(r"^(\S.*?) {2,}(-?[\d.]+) +(-?[\d.]+)%", out, re.MULTILINE)
    *parts, (title, total, share) = [(name, float(ms), float(part)) for name, ms, part in rows]
    assert (title, share) == ("step", 100)
    assert sum(ms for _, ms, _ in parts) == pytest.approx(total, abs=0.05 * len(rows))
    assert {"normalisation, backward", "optimizer", REORDER} <= {name for name, _, _ in parts}


def test_a_network_without_convolutions_is_a_mistake(capsys):
    assert step_profile.main(["--model", "MLP", "--img_size", "8", "--batch_size", "4"]) == 2
    assert "no convolution" in capsys.readouterr().err
