"""The benchmarks of the measures: their methods agree, and the commands run."""

import sys

import numpy as np
import pytest

from benchmarks import imagenet_size, nc_speed
from benchmarks.large_evaluation import fit_line
from benchmarks.nc_methods import METHODS, make_inputs
from tests.helpers import assert_mistake, run

needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(scope="module")
def inputs():
    return make_inputs((60, 12, 4), with_logits=True)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_method_runs(inputs, method):
    method.function(inputs)


def test_the_plain_version_agrees_with_ours(inputs):
    ours = METHODS["neural_collapse"].function(inputs)
    nc1, distances, nc4 = METHODS["NC1–NC4, plain float64"].function(inputs)
    plain = [float(value) for value in (nc1, *distances, nc4)]
    expected = [ours[name] for name in ("nc1", "nc2", "nc2_h", "nc3", "nc4")]
    assert plain == pytest.approx(expected, rel=1e-6)


def test_the_loops_agree(inputs):
    first, second = (method.function(inputs) for method in METHODS.values() if method.is_loop)
    assert np.allclose(first.numpy(), second, atol=1e-5)


@needs_proc
@pytest.mark.slow
def test_nc_speed(capsys):
    flags = ["--samples", "100", "--dim", "8", "--classes", "4", "--threads", "1"]
    assert nc_speed.main([*flags, "--repeats", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:34].strip() for line in lines[2:-1]] == list(METHODS)


@needs_proc
@pytest.mark.slow
def test_imagenet_size(capsys):
    flags = ["--samples", "60", "--dim", "8", "--classes", "4", "--threads", "1"]
    assert imagenet_size.main([*flags, "--measures", "variability", "class_means"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["N", "class_means", "variability", "sum"]
    assert lines[2].split()[0] == "60"


def test_the_line_through_seconds():
    assert fit_line([10, 20, 40], [2.0, 3.0, 5.0]) == pytest.approx((1, 0.1, 0))
    assert fit_line([10, 20, 40], [1.0, 4.0, 16.0])[2] > 0.2


def test_a_class_without_samples_is_a_mistake(capsys):
    assert nc_speed.main(["--samples", "3", "--classes", "4"]) == 2
    assert "--samples 3" in capsys.readouterr().err


@needs_proc
@pytest.mark.slow
def test_score_memory():
    result = run("benchmarks/score_memory.py", "--samples", 2000, "--classes", 7, "--dim", 5)
    assert result.returncode == 0, result.stderr
    assert "12,000 scores" in result.stdout


def test_score_memory_refuses_a_count_of_0():
    assert_mistake(run("benchmarks/score_memory.py", "--classes", 0), "--classes")
