"""The command line: checked values, flags that are not known, and how every command ends."""

import importlib
import os
import signal

import pytest
import torch

from args import parse_settings
from tests.helpers import read_refusal
from utils.cli import (
    Count,
    DeviceNumber,
    Factor,
    Natural,
    NonNegative,
    Parser,
    PathText,
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
        "path": PathText,
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
        ("path", "a/~/b", "a/~/b"),
        ("path", "~nobody-of-this-name/a", "~nobody-of-this-name/a"),
        ("path", "n" * 255, "n" * 255),
        ("path", "caf\udce9", "caf\udce9"),
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
        (["--count=--"], "argument --count: '--' is not a whole number"),
        (["--zz\x1b[2J"], r"unrecognized arguments: --zz\x1b[2J (see"),
        (["--path", "n" * 256], "…"),
        (["--path", "a/" + "n" * 256 + "/b"], "is too long: a name has at most 255 bytes"),
        (["--path", "n" * 254 + "é"], "is too long: a name has at most 255 bytes"),
        (["--path", "ab/" * 1200], "is too long: a path has at most 3500 bytes"),
        (["--path="], "'' is not the name of a file or directory"),
    ],
)
def test_a_refusal_names_the_flag_the_value_and_what_is_allowed(capsys, flags, words):
    line = read_refusal(capsys, build_parser().parse_args, *flags)
    assert line.startswith("script.py: error: ")
    assert line.endswith("(see script.py --help)")
    assert words in line


def test_a_path_begins_in_the_home_directory_however_it_is_given(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    for flags in (["--path", "~/x"], ["--path=~/x"]):
        assert build_parser().parse_args(flags).path == "/home/me/x"
    settings = parse_settings(["--save_dir=~/x", "--data_dir=~"])
    assert (settings.save_dir, settings.data_dir) == ("/home/me/x", "/home/me")


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("train", ["--save_dir"]),
        ("eval_nc", ["--model=MLP", "--load_path"]),
        ("eval_nc", ["--load_path=x", "--out"]),
        ("eval_scores", ["--out=x"]),
        ("eval_scores", ["x", "--out"]),
        ("eval_tsne", ["--data_dir=x"]),
        ("eval_tsne", ["x", "--out"]),
        ("verify_theory", ["--json"]),
        ("verify_theory", ["--plot"]),
        ("reproduce", ["theory", "--save_dir"]),
        ("reproduce", ["theory", "--out"]),
        ("demo", ["--save_dir"]),
    ],
)
def test_a_path_that_no_system_takes_is_refused_by_every_command(capsys, script, flags):
    main = importlib.import_module(script).main
    assert "is too long" in read_refusal(capsys, main, *flags, "n" * 300)


def test_a_double_dash_is_a_value_and_ends_the_flags():
    parser = build_parser()
    parser.add_argument("words", nargs="*")
    assert parser.parse_args(["--path=--", "a"]).path == "--"
    assert parser.parse_args(["--", "--path"]).words == ["--path"]


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
        (MemoryError(), "out of memory with --batch_size 64: a smaller one may fit; if"),
        (torch.OutOfMemoryError("CUDA"), "out of memory with --batch_size 64"),
        (RuntimeError("[enforce fail] can't allocate memory: 5 bytes"), "out of memory with"),
        (OSError(28, "No space left on device", "events.out"), "events.out: No space left on"),
        (OSError(36, "File name too long", b"caf\xe9\n"), r"caf\xe9\n: File name too long"),
        (OSError(5, "Input/output error", 7), "writing: Input/output error"),
        (
            RuntimeError("Storage size calculation overflowed"),
            "out of memory: the data set or the network",
        ),
        (UserError("a\nb\x1b[2J"), r"a\nb\x1b[2J"),
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


def test_out_of_memory_where_the_batch_size_was_not_given(capsys):
    line = read_refusal(capsys, lambda _: run(fail(MemoryError()), batch_size=0))
    assert "out of memory with the default --batch_size: a smaller one may fit" in line


def test_the_smallest_batch_is_not_blamed_for_too_little_memory(capsys):
    for size in (1, 2):
        line = read_refusal(capsys, lambda _, size=size: run(fail(MemoryError()), batch_size=size))
        assert "--img_size" in line
        assert "--sample_size" in line
        assert "--batch_size" not in line


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
