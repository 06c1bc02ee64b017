"""How long does a request wait in line? What queueing theory says for Poisson arrivals.

Times in seconds, rates in requests a second. A wait ends when service begins; a server takes its
line first come, first served, without end, so these are means over infinitely many requests.
Sources: Pollaczek 1930 and Khinchine 1932 (M/G/1); Bailey 1954 (service in batches); Little 1961;
Inoue 2021, "Queueing analysis of GPU-based inference servers with dynamic batching".
Chapter: chapters/40_batching.md    Lab: labs/40_batching.ipynb
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from inferlab.errors import UserError

LONGEST_LINE = 1600  # states of the chain
TAIL = 1e-7  # probability that may lie beyond; at the longest line, MOST_BEYOND
MOST_BEYOND = 1e-3  # more than that: called overloaded


def md1_wait_s(rate_req_per_s: float, service_s: float) -> float:
    """Mean wait when every service takes `service_s`: rho s / (2 (1 - rho)); inf from rho = 1."""
    return mg1_wait_s(rate_req_per_s, [service_s])


def mg1_wait_s(rate_req_per_s: float, services_s: Sequence[float]) -> float:
    """Pollaczek-Khinchine: lambda E[S^2] / (2 (1 - rho)), S drawn from `services_s` at random.

    Only mean and variance of the service count: at equal load, (1 + cv^2) times M/D/1.
    """
    services = _positive(services_s, "a service time")
    rho = utilization(rate_req_per_s, float(services.mean()))
    if rho >= 1:
        return math.inf
    return rate_req_per_s * float((services**2).mean()) / (2 * (1 - rho))


def utilization(rate_req_per_s: float, service_s: float) -> float:
    """Share of time that a server without batches is busy; 1 or more: the line never ends."""
    _positive([rate_req_per_s], "the arrival rate")
    _positive([service_s], "a service time")
    return rate_req_per_s * service_s


def fill_wait_s(rate_req_per_s: float, size: int) -> float:
    """Mean wait until a batch of `size` is full, the server being idle: (size - 1) / (2 lambda).

    The first of them waits for size - 1 arrivals, the last for none. A lower bound for static
    batches at any load.
    """
    _positive([rate_req_per_s], "the arrival rate")
    if size < 1:
        raise UserError(f"batch_size must be at least 1, not {size!r}")
    return (size - 1) / (2 * rate_req_per_s)


def hold_wait_s(rate_req_per_s: float, max_wait_s: float) -> float:
    """Mean wait when an idle server holds each batch open for `max_wait_s`, and none gets full.

    The first waits w, those that join in that time (lambda w of them) half of it on average:
    (w + lambda w^2 / 2) / (1 + lambda w). Close to w at low load: a wait for nobody.
    """
    _positive([rate_req_per_s], "the arrival rate")
    if not max_wait_s >= 0:
        raise UserError(f"max_wait_s must be 0 s or more, not {max_wait_s!r}")
    joiners = rate_req_per_s * max_wait_s
    return max_wait_s * (1 + joiners / 2) / (1 + joiners)


@dataclass(frozen=True, slots=True)
class BulkQueue:
    """Means of a server of batches over infinitely many requests; inf when it is overloaded."""

    wait_s: float
    batch_size: float  # of a batch
    batch_size_seen: float  # of the batch that a request is in: large ones hold more requests
    utilization: float  # share of time that the server is busy


def capacity_req_per_s(service_by_size_s: Sequence[float]) -> float:
    """Requests a second that a server of batches of up to b can take: b / s(b).

    Beyond that its batches are always full: it takes whoever waits, also where fewer would be
    served faster each.
    """
    services = _positive(service_by_size_s, "a service time")
    return float(services.size / services[-1])


def bulk_queue(
    rate_req_per_s: float, service_by_size_s: Sequence[float], full: bool = False
) -> BulkQueue:
    """M/D/1 with batches: a batch of k takes `service_by_size_s[k - 1]`, k up to their number b.

    `full` False: an idle server takes whoever waits, up to b (dynamic batching without a wait
    limit). True: it waits for b (static batching). Solved exactly: how many wait when a batch ends
    is a Markov chain; its stationary law gives the mean line, and Little's law the mean wait.
    A wait limit in between remembers ages, which this chain does not: emulate it.
    """
    services = _positive(service_by_size_s, "a service time")
    size = services.size
    _positive([rate_req_per_s], "the arrival rate")
    if rate_req_per_s >= capacity_req_per_s(services) * (1 - 1e-9):
        return BulkQueue(math.inf, size, size, 1.0)
    states = max(64, 8 * size)
    while True:
        found = _stationary(rate_req_per_s, services, full, states)
        if found[-1] < TAIL or states == LONGEST_LINE:
            break
        states = min(4 * states, LONGEST_LINE)
    if found[-1] > MOST_BEYOND:
        return BulkQueue(math.inf, size, size, 1.0)
    return _means(found, rate_req_per_s, services, full)


def _batch(waiting: int, size: int, full: bool) -> tuple[int, int]:
    """(requests in line when the next batch starts, its size) after a batch that left `waiting`."""
    start = max(waiting, size if full else 1)
    return start, min(start, size)


def _stationary(rate: float, services: np.ndarray, full: bool, states: int) -> np.ndarray:
    """[states] probability of n waiting when a batch ends; the last state holds all beyond."""
    from scipy.stats import poisson

    moves, arrivals = np.zeros((states, states)), {}
    for waiting in range(states):
        start, taken = _batch(waiting, services.size, full)
        left = start - taken
        if taken not in arrivals:  # while a batch of that size is served
            arrivals[taken] = poisson.pmf(np.arange(states), rate * services[taken - 1])
        moves[waiting, left : states - 1] = arrivals[taken][: states - 1 - left]
        moves[waiting, -1] = max(0.0, 1 - moves[waiting].sum())
    balance = moves.T - np.eye(states)
    balance[0] = 1.0  # one equation follows from the others: the shares add up to 1 instead
    found = np.clip(np.linalg.solve(balance, np.eye(states)[0]), 0, None)
    return found / found.sum()


def _means(found: np.ndarray, rate: float, services: np.ndarray, full: bool) -> BulkQueue:
    """Time averages over a cycle: from the end of one batch to the end of the next."""
    line = cycle = busy = taken_sum = taken_squares = 0.0
    for waiting, share in enumerate(found):
        start, taken = _batch(waiting, services.size, full)
        service, left = services[taken - 1], start - taken
        # While the server waits, n, n + 1, ... stand in line for 1 / rate each.
        idle_s = (start - waiting) / rate
        idle_line = sum(range(waiting, start)) / rate
        line += share * (idle_line + left * service + rate * service**2 / 2)
        cycle += share * (idle_s + service)
        busy += share * service
        taken_sum += share * taken
        taken_squares += share * taken**2
    return BulkQueue(
        wait_s=float(line / cycle / rate),
        batch_size=float(taken_sum),
        batch_size_seen=float(taken_squares / taken_sum),
        utilization=float(busy / cycle),
    )


def inoue_latency_bound_s(rate_req_per_s: float, fixed_s: float, per_request_s: float) -> float:
    """Upper bound of the mean latency (wait and service) for batches without a largest size.

    A batch of k takes `fixed_s` + k `per_request_s`; an idle server takes whoever waits. The
    smaller of two closed forms (Inoue 2021); inf when lambda `per_request_s` reaches 1.
    """
    rate, tau, alpha = rate_req_per_s, fixed_s, per_request_s
    _positive([rate, alpha], "a rate and the time of a request")
    rho = rate * alpha
    if rho >= 1:
        return math.inf
    low = (alpha + tau) / (2 * (1 - rho)) * (1 + 2 * rate * tau + (1 - rate * tau) / (1 + rho))
    high = 1.5 * tau / (1 - rho) + alpha / 2 * (rho + 2) / (1 - rho**2)
    return min(low, high)


def waits_in_line_s(
    arrivals_s: Sequence[float], services_s: Sequence[float] | Callable[[int], float]
) -> np.ndarray:
    """Wait of each request without batches: Lindley's recursion, exact for any times.

    wait[i + 1] = max(0, wait[i] + service[i] - gap[i]).
    """
    arrivals = np.asarray(arrivals_s, dtype=float)
    waits = np.zeros(arrivals.size)
    for i in range(arrivals.size - 1):
        service = services_s(i) if callable(services_s) else services_s[i]
        waits[i + 1] = max(0.0, waits[i] + service - (arrivals[i + 1] - arrivals[i]))
    return waits


def _positive(values: Sequence[float], what: str) -> np.ndarray:
    array = np.asarray(values, dtype=float).ravel()
    if not array.size or not np.isfinite(array).all() or (array <= 0).any():
        raise UserError(f"{what} must be above 0, and there must be one")
    return array
