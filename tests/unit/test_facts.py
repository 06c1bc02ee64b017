"""A machine's description says what matters to speed and nothing that is private."""

import getpass
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
from pydantic import ValidationError
from record_examples import cpu_machine, gpu_machine

from inferlab.errors import UserError
from inferlab.hardware import facts, nvml
from inferlab.hardware.facts import Accelerator, Cpu, Machine, describe_machine, device_slug


def test_this_machine_is_described_without_private_words():
    machine = describe_machine("cpu")
    text = machine.model_dump_json()
    assert machine.cpu.cores >= 1 and machine.cpu.memory_bytes > 1e8
    assert machine.packages["inferlab"]
    for word in (socket.gethostname(), getpass.getuser(), "/home/"):
        assert word == "root" or word not in text


def test_cpu_facts_do_not_import_torch():
    code = (
        "import sys; from inferlab.hardware.facts import describe_machine; describe_machine();"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.parametrize(
    ("model", "cores", "slug"),
    [
        ("AMD EPYC", 2, "cpu-amd-epyc-2c"),
        ("AMD EPYC 9B14 96-Core Processor", 8, "cpu-amd-epyc-9b14-8c"),
        ("Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", 4, "cpu-intel-xeon-platinum-8481c-4c"),
        ("../../etc", 1, "cpu-etc-1c"),
        ("", 1, "cpu-unknown-1c"),
    ],
)
def test_slug_of_a_cpu(model, cores, slug):
    assert device_slug(cpu_machine(cpu=Cpu(model=model, cores=cores))) == slug


def test_slug_of_a_gpu_says_when_it_is_a_slice():
    assert device_slug(gpu_machine()) == "nvidia-h200"
    part = Accelerator(name="NVIDIA H200", memory_bytes=1, mig=True)
    assert device_slug(cpu_machine(kind="cuda", accelerator=part)) == "nvidia-h200-mig"


@pytest.mark.parametrize("name", ["../x", "<script>alert(1)</script>", "a" * 150, "---", "Ä"])
def test_every_slug_is_a_safe_folder_name(name):
    machine = cpu_machine(kind="cuda", accelerator=Accelerator(name=name, memory_bytes=1))
    slug = device_slug(machine)
    assert slug and len(slug) <= 80 and set(slug) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_unknown_facts_and_devices_are_refused():
    with pytest.raises(ValidationError):
        Machine.model_validate({**cpu_machine().model_dump(), "hostname": "secret"})
    with pytest.raises(UserError, match="use cpu or cuda"):
        describe_machine("tpu")


def test_no_cuda_device_is_one_clear_line(monkeypatch):
    monkeypatch.setattr(nvml, "read_accelerator", lambda: None)
    with pytest.raises(UserError, match="no CUDA device is visible"):
        describe_machine("cuda")


@pytest.mark.parametrize(
    ("affinity", "cpu_max", "cores"),
    [(8, "max 100000", 8), (8, "150000 100000", 2), (2, "400000 100000", 2), (4, "1000 100000", 1)],
)
def test_usable_cores_respect_the_quota(monkeypatch, affinity, cpu_max, cores):
    monkeypatch.setattr(facts.os, "sched_getaffinity", lambda _: set(range(affinity)))
    monkeypatch.setattr(facts, "_read", lambda path: cpu_max if path.name == "cpu.max" else None)
    assert facts.usable_cores() == cores


class _FakeNvml:
    """A driver that knows one device and refuses what containers often hide."""

    class NVMLError(Exception):
        pass

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    nvmlClocksEventReasonGpuIdle, nvmlClocksEventReasonSwPowerCap = 1, 4
    nvmlClocksEventReasonAll, nvmlClocksEventReasonNone = 0xFF, 0

    def nvmlDeviceGetMemoryInfo(self, handle):
        return SimpleNamespace(total=100)

    def nvmlDeviceGetName(self, handle):
        return b"NVIDIA Test"

    def nvmlSystemGetCudaDriverVersion_v2(self):
        return 13010

    def nvmlDeviceGetCudaComputeCapability(self, handle):
        return (9, 0)

    def nvmlDeviceGetClockInfo(self, handle, which):
        return 1980

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle):
        return 5

    def __getattr__(self, name):
        def refuse(*_):
            raise self.NVMLError("not supported")

        return refuse


def test_hidden_gpu_facts_become_none_and_visible_ones_are_si():
    found = Accelerator(**nvml._facts(_FakeNvml(), None))
    assert (found.name, found.compute_capability, found.cuda_driver) == (
        "NVIDIA Test",
        "9.0",
        "13.1",
    )
    assert found.sm_clock_hz == 1.98e9
    assert found.throttle_reasons == ["SwPowerCap"]
    assert found.power_limit_w is None and found.ecc is None and found.other_processes is None


def test_the_cuda_of_torch_is_known_without_a_local_version(monkeypatch):
    """The package index's wheel calls itself 2.11.0, not 2.11.0+cu130."""
    import torch

    found = {"name": "NVIDIA H200", "memory_bytes": 1}
    monkeypatch.setattr("inferlab.hardware.nvml.read_accelerator", lambda: found)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert facts._accelerator({"torch": "2.11.0"}).cuda_runtime == "13.0"
    assert facts._accelerator({"torch": "2.11.0+cu126"}).cuda_runtime == "12.6"


@pytest.mark.gpu
def test_the_first_gpu_is_described():
    if nvml.read_accelerator() is None:
        pytest.skip("no CUDA device is visible")
    machine = describe_machine("cuda")
    assert machine.accelerator.memory_bytes > 1e9
    assert machine.accelerator.compute_capability
    assert device_slug(machine)
