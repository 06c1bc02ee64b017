"""Everything that can turn a workload into a trace."""

from inferlab.backends.base import BACKENDS, Backend, BackendRun, load_backend

__all__ = ["BACKENDS", "Backend", "BackendRun", "load_backend"]
