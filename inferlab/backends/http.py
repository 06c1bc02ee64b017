"""What does a server behind a URL do with a workload, as seen by its client?

A backend like the others, so that a server is measured by the same definitions as a model in this
process; the client is `inferlab.client`. Whether the client was to be trusted is in the trace's
meta["client"]; a strict backend refuses a run that it voids.
Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""

from __future__ import annotations

from dataclasses import dataclass

from inferlab.backends.base import BackendRun
from inferlab.client.drive import LoadRun, drive
from inferlab.client.target import Target
from inferlab.errors import MeasurementError, UserError
from inferlab.models.config import ModelConfig, get_config
from inferlab.workload import Workload


@dataclass(frozen=True, slots=True)
class HttpBackend:
    """An OpenAI-compatible server at `url`, and the model's name there.

    `concurrency` makes the loop closed. `timeout_s` and `extensions` are those of `client.Target`.
    `config` is None where the model is known to the server only; `dtype` is what the server is said
    to compute in.
    """

    url: str
    model: str
    api: str = "completions"
    concurrency: int | None = None
    timeout_s: float = 600.0
    extensions: bool = True
    config: ModelConfig | None = None
    dtype: str = "unknown"
    is_strict: bool = False
    name: str = "http"

    @property
    def target(self) -> Target:
        """Where requests go; UserError for what is no URL."""
        return Target(self.url, self.model, self.api, self.timeout_s, self.extensions)

    def drive(self, workload: Workload, prompts: list[str] | None = None) -> LoadRun:
        """The whole run with the client's verdict, whatever that says; `prompts` as in `drive`."""
        return drive(self.target, workload, concurrency=self.concurrency, prompts=prompts)

    def run(self, workload: Workload, prompts: list[str] | None = None) -> BackendRun:
        """Trace and token ids (empty where the server sends none), `checked`."""
        done = checked(self.drive(workload, prompts), self.is_strict)
        return BackendRun(done.trace, done.token_ids)


def checked(done: LoadRun, is_strict: bool = False) -> LoadRun:
    """The run, where it may be looked at.

    Raises MeasurementError when no request succeeded, and, where `is_strict`, when the client's
    verdict voids it; KeyboardInterrupt after Ctrl-C.
    """
    if done.interrupted:
        raise KeyboardInterrupt
    requests = done.trace.requests
    if not any(request.status == "ok" for request in requests):
        raise MeasurementError(f"every request failed; the first: {requests[0].error}")
    if is_strict and not done.verdict.valid:
        raise MeasurementError(f"the run is void: {done.verdict.reasons[0]}")
    return done


def load(
    model: str | ModelConfig = "smollm2-135m",
    dtype: str = "unknown",
    device: str = "cpu",
    url: str = "",
    api: str = "completions",
    concurrency: int | None = None,
    served_model: str | None = None,
    timeout_s: float = 600.0,
    extensions: bool = True,
    is_strict: bool = False,
) -> HttpBackend:
    """A server that is already running at `url`; `device` is its own business and changes nothing.

    `served_model` is the model's name there, where it is not that of the preset.
    """
    if not url:
        raise UserError("the http backend needs url=..., such as http://127.0.0.1:8000")
    config = model if isinstance(model, ModelConfig) else get_config(model)
    name = served_model or config.name
    return HttpBackend(url, name, api, concurrency, timeout_s, extensions, config, dtype, is_strict)
