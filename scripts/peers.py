"""Other people's load generators beside ours: AIPerf, GuideLLM, vLLM bench.

    python scripts/peers.py install [NAME ...]     into .peers/NAME, an environment each
    python scripts/peers.py check                  which are there, and do they start
    python scripts/peers.py run [NAME ...] --url URL [--model NAME] [--concurrency N ...]
    python scripts/peers.py remove [NAME ...]      delete their environments

Run it with the Python of the book (.venv/bin/python). `run` gives every tool, and our client
before each of them, the same prompts and prints what they say in one set of words. A server that
refuses the field `ignore_eos` (transformers' does) needs --no-ignore-eos, and must then end every
answer at the length asked for. None of these packages is among the requirements: AIPerf takes
1.2 GB, GuideLLM 1.5 GB, vLLM 3.5 GB.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from inferlab.errors import UserError
from inferlab.underload.peers import PEERS, Peer, how_to_install, installed, peers_folder, python_of


def has_nvidia_driver() -> bool:
    """Whether this machine has an NVIDIA GPU that answers."""
    program = shutil.which("nvidia-smi")
    return bool(program) and subprocess.run([program], capture_output=True).returncode == 0  # noqa: S603


def pip_commands(peer: Peer, python: str, has_gpu: bool) -> list[list[str]]:
    """What fills the environment of a peer."""
    wanted = peer.gpu_requirements if has_gpu else peer.requirements
    pip = [python, "-m", "pip"]
    commands = [[*pip, "install", "--disable-pip-version-check", *wanted]]
    if peer.unwanted and not has_gpu:
        commands.append([*pip, "uninstall", "-y", *peer.unwanted])
    return commands


def install(names: Sequence[str]) -> int:
    """Make the environments that are not there yet; a failed one is removed again."""
    has_gpu, failed = has_nvidia_driver(), 0
    for name in names:
        python = python_of(name)
        if python.exists():
            print(f"{name}: already in {python.parent.parent}")
            continue
        start = time.monotonic()
        make = [sys.executable, "-m", "venv", str(python.parent.parent)]
        commands = [make, *pip_commands(PEERS[name], str(python), has_gpu)]
        try:
            has_failed = any(subprocess.run(words).returncode for words in commands)  # noqa: S603
        except BaseException:  # Ctrl-C: half an environment must not pass for a whole one
            shutil.rmtree(python.parent.parent, ignore_errors=True)
            raise
        if has_failed:
            shutil.rmtree(python.parent.parent, ignore_errors=True)
            print(f"{name}: failed (above), and removed again", file=sys.stderr)
            failed += 1
            continue
        print(f"{name}: installed in {time.monotonic() - start:.0f} s")
    return 1 if failed else 0


def check(names: Sequence[str]) -> int:
    """One line a peer: its version, or what to do; 1 when one that is there does not start."""
    failed = 0
    for name in names:
        peer, python = PEERS[name], python_of(name)
        if not python.exists():
            print(f"{name:<9} not installed: {how_to_install(name)}")
            continue
        code = (
            f"import {peer.import_check}, importlib.metadata as m; "
            f"print(next(d.version for d in m.distributions() "
            f"if d.name.lower() in ({peer.distribution!r}, {peer.name!r})))"
        )
        answer = subprocess.run([python, "-c", code], capture_output=True, text=True)  # noqa: S603
        if answer.returncode:
            last = (answer.stderr.strip().splitlines() or ["no message"])[-1]
            print(f"{name:<9} is there but does not start: {last}")
            failed += 1
        else:
            print(f"{name:<9} {answer.stdout.split()[-1]}")
    return 1 if failed else 0


def remove(names: Sequence[str]) -> int:
    """Delete environments; what is not there is no error."""
    for name in names:
        folder = python_of(name).parent.parent
        print(f"{name}: {'removed' if folder.is_dir() else 'was not there'}")
        shutil.rmtree(folder, ignore_errors=True)
    if peers_folder().is_dir() and not any(peers_folder().iterdir()):
        peers_folder().rmdir()
    return 0


def run(names: Sequence[str], options: argparse.Namespace) -> int:
    """The same job for each peer, ours before it; a table in milliseconds."""
    from inferlab.models.load import ensure_model
    from inferlab.underload.comparison import COMPARED, ServerUnderTest, comparison_cases

    there = [name for name in names if name in installed()]
    if not there:
        raise UserError(f"no load generator is installed: {how_to_install()}")
    server = ServerUnderTest(
        "server", options.url, options.model, ensure_model(options.tokenizer or options.model),
        not options.no_ignore_eos,
    )  # fmt: skip
    failed = 0
    print(f"{'':<12}{'c':>4}" + "".join(f"{name:>22}" for name in COMPARED.values()))
    for concurrency in options.concurrency:
        cases = comparison_cases(
            server, peers=there, prompt_len=options.prompt_len, output_len=options.output_len,
            num_requests=options.num_requests, concurrency=concurrency,
        )  # fmt: skip
        for name, case in cases.items():
            shown = name.removeprefix(f"server-c{concurrency}-")
            try:
                values = case.run()
            except UserError as error:
                print(f"{shown:<12}{concurrency:>4}  {error}")
                failed += 1
                continue
            cells = (f"{1e3 * values[m]:.2f} ms" if m in values else "-" for m in COMPARED)
            print(f"{shown:<12}{concurrency:>4}" + "".join(f"{cell:>22}" for cell in cells))
    return 1 if failed else 0


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("install", "check", "run", "remove"):
        one = verbs.add_parser(verb)
        one.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PEERS))
        if verb == "run":
            one.add_argument("--url", required=True)
            one.add_argument("--model", default="smollm2-135m", help="as the server calls it")
            one.add_argument("--tokenizer", help="a preset of the book; default: the model")
            one.add_argument("--concurrency", type=int, nargs="+", default=[1, 4])
            one.add_argument("--num-requests", type=int, default=8)
            one.add_argument("--prompt-len", type=int, default=64)
            one.add_argument("--output-len", type=int, default=32)
            one.add_argument("--no-ignore-eos", action="store_true")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """0, or the exit code of what failed, with one line on stderr."""
    options = parsed(arguments)
    names = options.names or list(PEERS)
    verbs: dict[str, Callable[..., int]] = {"install": install, "check": check, "remove": remove}
    try:
        for name in names:
            python_of(name)  # an unknown one is refused before anything is done
        if options.verb == "run":
            return run(names, options)
        return verbs[options.verb](names)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
