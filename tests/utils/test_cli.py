"""The command line: checked values, flags that are not known, and how every command ends."""

import os
import signal

import pytest
import torch

from tests.helpers import read_refusal
from utils.cli import (
    Count,
    DeviceNumber,
    Factor,
    Natural,
    NonNegative,
    Parser,
    Positive,
    Real,
    add_evaluation_flags,
    check_value,
    make_directory,
    name_of,
    run_command,
)
from utils.errors import UserError


def build_parser():
    parser = Parser(prog="script.py")
    for name, kind in {
        "count": Count,
        "natural": Natural,
        "device": DeviceNumber,
        "real": Real,
        "positive": Positive,
        "non_negative": NonNegative,
        "factor": Factor,
        "fruit": name_of(["Apple", "Pear"], "fruit"),
    }.items():
        parser.add_argument(f"--{name}", type=check_value(kind))
    add_evaluation_flags(parser)
    return parser


@pytest.mark.parametrize(
    ("flag", "text", "value"),
    [
        ("count", "1", 1),
        ("natural", "0", 0),
        ("device", "-1", -1),
        ("real", "-1e-3", -0.001),
        ("positive", "1e-5", 1e-5),
        ("non_negative", "0", 0.0),
        ("factor", "1", 1.0),
        ("fruit", "PEAR", "Pear"),
    ],
)
def test_values_are_converted(flag, text, value):
    assert getattr(build_parser().parse_args([f"--{flag}", text]), flag) == value


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--count", "0"], "argument --count: '0' must be at least 1"),
        (["--natural", "-1"], "argument --natural: '-1' must be at least 0"),
        (["--device", "-2"], "argument --device: '-2' must be at least -1"),
        (["--real", "nan"], "argument --real: 'nan' is not a finite number"),
        (["--positive", "0"], "argument --positive: '0' must be above 0"),
        (["--factor", "0.9"], "argument --factor: '0.9' must be at least 1"),
        (["--count", "2147483648"], "must be at most 2147483647"),
        (["--fruit", "aple"], "unknown fruit 'aple' (did you mean Apple?): use one of Apple, Pear"),
        (["--fruit", "x\ny"], "unknown fruit 'x\\ny': use one of"),
        (
            ["--batchsize", "3"],
            "arguments: --batchsize 3 (did you mean --batch_size?)",
        ),
        (["--batch", "3"], "(did you mean --batch_size?)"),  # no abbreviations
        (["--zzz=3"], "unrecognized arguments: --zzz=3 (see"),
        (["word"], "unrecognized arguments: word (see"),
        (["--count"], "argument --count: expected one argument"),
    ],
)
def test_a_refusal_names_the_flag_the_value_and_what_is_allowed(capsys, flags, words):
    line = read_refusal(capsys, build_parser().parse_args, *flags)
    assert line.startswith("script.py: error: ")
    assert line.endswith("(see script.py --help)")
    assert words in line


def run(body, **options):
    return run_command("script.py", body, stopped="stopped early", **options)


def fail(error):
    def body(stop):
        raise error

    return body


def test_a_command_returns_the_status_of_its_body(capsys):
    assert run(lambda stop: 3) == 3
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (UserError("--x 3 is wrong"), "--x 3 is wrong"),
        (MemoryError(), "out of memory with --batch_size 64: a smaller one may fit"),
        (torch.OutOfMemoryError("CUDA"), "out of memory with --batch_size 64"),
        (RuntimeError("[enforce fail] can't allocate memory: 5 bytes"), "out of memory with"),
        (OSError(28, "No space left on device", "events.out"), "events.out: No space left on"),
        (RuntimeError("known"), "--compile: explained"),
    ],
)
def test_a_mistake_ends_in_one_line(capsys, error, words):
    def explain(found):
        return "--compile: explained" if str(found) == "known" else None

    options = {"batch_size": 64, "explain": explain}
    line = read_refusal(capsys, lambda _: run(fail(error), **options))
    assert line.startswith(f"script.py: error: {words}")


def test_out_of_memory_without_a_batch_size(capsys):
    line = read_refusal(capsys, lambda _: run(fail(MemoryError())))
    assert line == "script.py: error: out of memory"


@pytest.mark.parametrize("error", [RuntimeError("a defect"), ValueError("a defect")])
def test_a_defect_is_not_hidden(error):
    with pytest.raises(type(error), match="a defect"):
        run(fail(error))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_ends_in_one_line_and_the_status_of_its_signal(capsys, number, status):
    before = signal.getsignal(number)

    def body(stop):
        os.kill(os.getpid(), number)
        pytest.fail("the command goes on")

    with pytest.raises(SystemExit) as leaving:
        raise SystemExit(run(body))
    assert leaving.value.code == status
    assert capsys.readouterr().err == "stopped early\n"
    assert signal.getsignal(number) == before


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    assert make_directory("--out", tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--out: cannot create .*file/c"):
        make_directory("--out", tmp_path / "file" / "c")
