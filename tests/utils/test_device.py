"""The device of a command: every way in which a GPU can be missing, refuse or run short."""

import os
import types
import warnings

import pytest
import torch

import train
from utils import cuda_problems, sharing
from utils.cli import MISTAKE, list_device_flags, run_command
from utils.device import (
    CONTEXT,
    check_gpus,
    is_out_of_memory,
    measure_free_memory,
    pick_device,
)
from utils.errors import UserError
from utils.sharing import GPU_SHARERS, read_sharers, split_cores

OLD = (
    "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU "
    "driver by downloading and installing a new version from the URL: http://www.nvidia.com"
)
BUSY = "CUDA error: CUDA-capable device(s) is/are busy or unavailable\nSearch for `cudaError…`"
TOTAL = 12 * 2**30


class Machine:
    """Stands for the machine at the seam of torch.cuda and /dev."""

    def __init__(self, monkeypatch, folder):
        self.monkeypatch, self.folder = monkeypatch, folder
        self.fractions = []
        monkeypatch.setattr(cuda_problems, "DEVICES", folder)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.delenv(GPU_SHARERS, raising=False)

    def put_cards(self, count):
        """Put device nodes where the program looks for them."""
        for name in ("nvidiactl", *(f"nvidia{number}" for number in range(count))):
            (self.folder / name).symlink_to("/dev/null")

    def set_visible(self, value):
        self.monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)

    def set_cuda(self, **functions):
        for name, function in functions.items():
            self.monkeypatch.setattr(torch.cuda, name, function)

    def break_cuda(self, error, built="13.0"):
        def fail():
            raise error

        def warn():
            warnings.warn(f"CUDA initialization: {error}", stacklevel=1)
            return False

        self.monkeypatch.setattr(torch.version, "cuda", built)
        self.set_cuda(init=fail, is_available=warn)

    def run_cuda(self, count=1, capability=(9, 0), built=("sm_80", "sm_90", "compute_90")):
        """Have GPUs that work, except that nothing computes on them."""
        self.monkeypatch.setattr(torch.version, "cuda", "13.0")
        memory = types.SimpleNamespace(total_memory=TOTAL)
        self.set_cuda(
            is_available=lambda: True,
            is_initialized=lambda: True,
            device_count=lambda: count,
            current_device=lambda: 0,
            set_device=lambda device: None,
            get_arch_list=lambda: list(built),
            get_device_name=lambda device: "Card",
            get_device_capability=lambda device: capability,
            get_device_properties=lambda device: memory,
            set_per_process_memory_fraction=lambda part, device: self.fractions.append(part),
        )
        self.monkeypatch.setattr(torch, "zeros", lambda *size, device: torch.ones(*size))


@pytest.fixture
def machine(monkeypatch, tmp_path):
    return Machine(monkeypatch, tmp_path)


def read_refusal(gpu_id=0):
    with pytest.raises(UserError) as refusal:
        pick_device(gpu_id)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def read_cpu_line(*args, **options):
    """The CPU takes the place of a GPU; returns the reason in its name."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the line is the only word about it
        device, name = pick_device(*args, **options)
    assert device == torch.device("cpu")
    before, _, reason = name.partition(": ")
    assert before == f"CPU ({torch.get_num_threads()} threads)"
    return reason


# --- The CPU ---


def test_apples_gpu_is_named_as_not_used(machine, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    machine.set_cuda(is_available=lambda: False)
    reason = read_cpu_line(0)
    assert reason.startswith("no CUDA device found (Apple's GPU is not used: it has no float64")
    assert read_cpu_line(-1) == ""


@pytest.mark.parametrize("gpu_id", [None, 0, 3])
def test_without_a_card_the_cpu_computes(machine, gpu_id):
    machine.break_cuda(RuntimeError("Found no NVIDIA driver on your system."))
    assert read_cpu_line(gpu_id) == "no CUDA device found"
    check_gpus("--gpu_ids", [0, 3])


def test_the_cpu_can_be_chosen(machine):
    machine.run_cuda()
    assert read_cpu_line(-1) == ""


@pytest.mark.parametrize("value", ["", "-1", "NoDevFiles", " -1,0"])
def test_a_hidden_card_stays_hidden(machine, value):
    machine.put_cards(2)
    machine.break_cuda(RuntimeError("No CUDA GPUs are available"))
    machine.set_visible(value)
    expected = f"no CUDA device found (CUDA_VISIBLE_DEVICES={value!r} hides all)"
    assert read_cpu_line(0) == expected


def test_a_card_that_may_not_be_opened_is_none(machine):
    machine.put_cards(1)
    (machine.folder / "nvidiactl").unlink()
    assert cuda_problems.count_cards() == 0
    (machine.folder / "nvidiactl").touch()  # a file, and no device
    assert cuda_problems.count_cards() == 0


# --- A card that cannot be used ---


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OLD, "the NVIDIA driver (for CUDA 11.4) is too old for this torch, which is built for"),
        ("Found no NVIDIA driver on your system. Please check", "libcuda.so.1 is not found"),
        (
            "Unexpected error from cudaGetDeviceCount(). Error 804: forward compatibility was "
            "attempted on non supported HW",
            "update the NVIDIA driver",
        ),
        (
            "Error 803: system has unsupported display driver / cuda driver combination",
            "restart the machine",
        ),
        ("Unexpected error. Error 802: system not yet initialized", "nvidia-fabricmanager"),
        ("CUDA unknown error - this may be due to an incorrectly set up", "nvidia-modprobe"),
        ("something\nelse " + "long " * 50, "something else long"),
    ],
)
def test_cuda_does_not_start(machine, error, words):
    machine.put_cards(2)
    machine.break_cuda(RuntimeError(error))
    refusal = read_refusal(0)
    assert refusal.startswith("--gpu_id 0: ")
    assert words in refusal
    assert refusal.endswith("or give --gpu_id -1 for the CPU")
    assert words in read_cpu_line(None)  # nobody asked for the GPU
    assert words in read_cpu_line(0, given=False)
    with pytest.raises(UserError, match="--gpu_ids 0: "):
        check_gpus("--gpu_ids", [0, 1])


def test_a_torch_without_cuda(machine):
    machine.put_cards(1)
    machine.break_cuda(AssertionError("Torch not compiled with CUDA enabled"), built=None)
    assert f"this torch, {torch.__version__}, has no CUDA: install another" in read_refusal()


@pytest.mark.parametrize("value", ["abc", "2", "[0,1]", "0;1"])
def test_a_wrong_list_of_visible_devices(machine, value):
    machine.put_cards(2)
    machine.break_cuda(RuntimeError("No CUDA GPUs are available"))
    machine.set_visible(value)
    refusal = read_refusal()
    assert f"CUDA_VISIBLE_DEVICES={value!r} begins with no GPU of this machine" in refusal
    assert "from 0 to 1" in refusal


def test_an_unknown_card_by_its_long_name(machine):
    machine.put_cards(1)
    machine.break_cuda(RuntimeError("No CUDA GPUs are available"))
    machine.set_visible("GPU-12ab")
    refusal = read_refusal()
    assert "No CUDA GPUs are available (CUDA_VISIBLE_DEVICES='GPU-12ab')" in refusal


@pytest.mark.parametrize("flags", [[], ["--gpu_id", "0"]])
def test_train_knows_whether_a_gpu_was_asked_for(machine, tmp_path, capsys, flags):
    machine.put_cards(1)
    machine.break_cuda(RuntimeError(OLD))
    wanted = ["--model", "MLP", "--sample_size", "4000", "--save_dir", str(tmp_path), *flags]
    assert train.main(wanted) == MISTAKE
    error = capsys.readouterr().err
    assert ("too old" in error) == bool(flags)
    assert ("--sample_size 4000" in error) != bool(flags)  # refused later, on the CPU


@pytest.mark.parametrize(
    ("capability", "built", "runs"),
    [
        ((8, 0), "sm_80", True),
        ((8, 6), "sm_80", True),  # a higher minor number
        ((8, 0), "sm_86", False),
        ((9, 0), "sm_80 sm_86", False),  # machine code does not cross a major number
        ((9, 0), "sm_80 compute_80", True),  # PTX does
        ((7, 5), "sm_80 compute_80", False),
        ((12, 0), "sm_100 sm_120", True),
        ((10, 3), "sm_90 sm_100", True),
        ((9, 0), "sm_90a", True),
        ((12, 1), "sm_120a compute_120a", False),
        ((10, 3), "sm_100f", True),
        ((12, 0), "compute_100f", False),
        ((3, 5), "", True),  # a torch that does not say what it has
    ],
)
def test_kernels_of_a_card(machine, capability, built, runs):
    machine.run_cuda(capability=capability, built=built.split())
    if runs:
        assert pick_device(0)[1] == "GPU 0 (Card)"
        return
    major, minor = capability
    words = f"no kernels for the Card (compute capability {major}.{minor}; built for {built})"
    assert words in read_refusal()
    assert words in read_cpu_line(None)


def test_a_number_that_no_gpu_has(machine):
    machine.run_cuda(count=2)
    assert pick_device(1)[0] == torch.device("cuda", 1)
    expected = "--gpu_id 3: this machine has GPUs 0 to 1; --gpu_id -1 is the CPU"
    assert read_refusal(3) == expected
    machine.set_visible("4,6")
    assert "sees GPUs 0 to 1, the entries of CUDA_VISIBLE_DEVICES='4,6'" in read_refusal(2)
    check_gpus("--gpu_ids", [1, 0])
    with pytest.raises(UserError, match="--gpu_ids 2: this process sees GPUs 0 to 1"):
        check_gpus("--gpu_ids", [0, 2])
    machine.run_cuda(count=1)
    assert "sees GPU 0," in read_refusal(1)


@pytest.mark.parametrize("gpu_id", [None, 0])
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError(BUSY), "another process holds this GPU"),
        (torch.AcceleratorError("CUDA error: out of memory"), "its memory is full"),
        (torch.AcceleratorError("CUDA error: uncorrectable ECC error"), "has a fault"),
        (RuntimeError("CUDA error: no kernel image is available for"), "no kernels"),
    ],
)
def test_a_gpu_that_fails_at_once(machine, gpu_id, error, words):
    """The card works in general: the CPU would be no answer, whoever chose it."""

    def fail(device):
        raise error

    machine.run_cuda()
    machine.set_cuda(set_device=fail)
    assert words in read_refusal(gpu_id)


def test_an_error_without_a_remedy_keeps_its_trace(machine):
    def fail(device):
        raise RuntimeError("CUDA error: device-side assert triggered")

    machine.run_cuda()
    machine.set_cuda(set_device=fail)
    with pytest.raises(RuntimeError, match="device-side assert"):
        pick_device(0)


# --- Memory ---


def test_a_shared_gpu_gives_its_part(machine, monkeypatch):
    machine.run_cuda()
    machine.set_cuda(
        mem_get_info=lambda device: (2**33, TOTAL),
        memory_reserved=lambda device: 2**30,
        memory_allocated=lambda device: 2**29,
    )
    pick_device(0)
    assert machine.fractions == []
    assert measure_free_memory(torch.device("cuda", 0)) == 2**33 + 2**29
    monkeypatch.setenv(GPU_SHARERS, "3")
    pick_device(0)
    limit = TOTAL // 3 - CONTEXT
    assert machine.fractions == [limit / TOTAL]
    assert measure_free_memory(torch.device("cuda", 0)) == limit - 2**29
    monkeypatch.setenv(GPU_SHARERS, "100")  # not even room to start: every tensor is refused
    pick_device(0)
    assert machine.fractions[-1] == 0.0


def test_sharers_are_read(monkeypatch):
    monkeypatch.delenv(GPU_SHARERS, raising=False)
    assert read_sharers() == 1
    monkeypatch.setenv(GPU_SHARERS, "3")
    assert read_sharers() == 3


@pytest.mark.parametrize("text", ["0", "", "x", "-2"])
def test_a_wrong_number_of_sharers_is_refused(monkeypatch, text):
    monkeypatch.setenv(GPU_SHARERS, text)
    with pytest.raises(UserError, match=r"GPU_SHARERS=.* must be a whole number above 0"):
        read_sharers()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError('NVML_SUCCESS == r INTERNAL ASSERT FAILED at "CUDACachingAllocator.cpp":830'),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_too_little_memory(machine, error):
    assert is_out_of_memory(error)
    assert not is_out_of_memory(ValueError("x"))


@pytest.mark.parametrize(
    "text",
    [
        "GET was unable to find an engine to execute this computation",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    ],
)
def test_an_unclear_error_means_memory_only_on_a_full_gpu(machine, text):
    assert not is_out_of_memory(RuntimeError(text))  # CUDA has not started
    machine.run_cuda()
    counts = {"memory_reserved": lambda device: 0, "memory_allocated": lambda device: 0}
    machine.set_cuda(mem_get_info=lambda device: (2**30, TOTAL), **counts)
    assert not is_out_of_memory(RuntimeError(text))
    machine.set_cuda(mem_get_info=lambda device: (2**28, TOTAL))
    assert is_out_of_memory(RuntimeError(text))

    def fail(device):
        raise RuntimeError("CUDA error: unspecified launch failure")

    machine.set_cuda(mem_get_info=fail)
    assert not is_out_of_memory(RuntimeError(text))


def end_with(error, capsys, **options):
    def fail(stop):
        raise error

    assert run_command("s.py", fail, stopped="", **options) == MISTAKE
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line


def test_the_line_about_memory_names_the_share(machine, monkeypatch, capsys):
    error = torch.OutOfMemoryError("CUDA out of memory")
    monkeypatch.setenv(GPU_SHARERS, "3")
    assert "--jobs" not in end_with(error, capsys, batch_size=8)  # on the CPU nothing is shared
    machine.run_cuda()
    share = "in 1/3 of the GPU (fewer --jobs of reproduce.py give each more)"
    assert f"with --batch_size 8 {share}: a smaller one may fit" in end_with(
        error, capsys, batch_size=8
    )
    assert f"out of memory {share}: the data set" in end_with(error, capsys, batch_size=2)
    assert end_with(error, capsys) == f"s.py: error: out of memory {share}\n"


def test_errors_of_cuda_end_in_one_line(machine, capsys):
    error = torch.AcceleratorError("CUDA error: unspecified launch failure\nCUDA kernel errors")
    assert "--resume" in end_with(error, capsys, batch_size=8)


# --- Shares of the processor, flags ---


@pytest.mark.parametrize(
    ("count", "parts", "threads"),
    [(2, 2, [1, 1]), (8, 3, [3, 3, 2]), (2, 3, [1, 1, 1]), (5, 1, [5]), (7, 4, [2, 2, 2, 1])],
)
def test_cores_are_split(monkeypatch, tmp_path, count, parts, threads):
    monkeypatch.setattr(sharing, "count_usable_cores", lambda: count)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(count)), raising=False)
    monkeypatch.setattr(sharing, "TOPOLOGY", f"{tmp_path}/{{}}")
    for number in range(count):
        (tmp_path / str(number)).write_text(f"{number}\n")
    assert split_cores(parts) == threads


def test_two_threads_of_a_core_count_once(monkeypatch, tmp_path):
    monkeypatch.setattr(sharing, "count_usable_cores", lambda: 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(sharing, "TOPOLOGY", f"{tmp_path}/{{}}")
    assert split_cores(1) == [4]  # the system does not show them
    for number in range(4):
        (tmp_path / str(number)).write_text(f"{number % 2},{number % 2 + 2}\n")
    assert split_cores(1) == [2]


def test_a_device_is_handed_on_only_if_it_was_given():
    assert list_device_flags(None) == []
    assert list_device_flags(-1) == ["--gpu_id", "-1"]
