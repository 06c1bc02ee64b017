"""A small record of lab 40 from a tiny decoder, really served: nothing in it is made up."""

from record_examples import manifest, samples

from inferlab.backends.torch import TorchBackend
from inferlab.batching import bench, cost, tables
from inferlab.bench import Shape, generation_case, predict
from inferlab.fitting import Fitted
from inferlab.records import CaseInfo, Record
from inferlab.roofline import Ceilings
from inferlab.serving.batcher import NONE, dynamic, static

LIMITS = Ceilings(1e10, 1e11, 1e-4, 1e-5)
FITTED = Fitted(LIMITS, LIMITS)
LOADS = (0.3, 1.5)
SIZE = 4


def recorded(blocks, rounds=3):
    """A record in memory of cases by block, each run `rounds` times."""
    infos, rows = {}, []
    for block, cases in blocks.items():
        for name, case in cases.items():
            infos[name] = CaseInfo(
                params=dict(case.params), predicted=dict(case.predicted), block=block
            )
            for index in range(rounds):
                rows += [(name, metric, v, index, "ok") for metric, v in case.run().items()]
    return Record(manifest(cases=infos), samples(rows))


def small_record(decoder):
    """Frontier, services, two loads, mixed lengths and prefills; and the traces of the loads."""
    shapes = {size: Shape(size, 4, 4) for size in (1, 2, 4)}
    backend = TorchBackend(decoder, weights="random")
    frontier = {
        f"frontier/b{size}": generation_case(
            backend, shape, params={"phase": "frontier"},
            predicted=predict(decoder.config, "float32", shape, LIMITS) | {"knee_batch_size": 2.0},
        )
        for size, shape in shapes.items()
    }  # fmt: skip
    service = {
        f"service/b{size}": bench.service_case(decoder, size, 4, 4, FITTED) for size in (1, 2, 4)
    }
    times, traces = tables.step_times(recorded({"service": service})), {}
    policies = {
        "none": NONE, "static": static(SIZE), "dynamic": dynamic(SIZE),
        "held": dynamic(SIZE, 0.01),
    }  # fmt: skip
    loads = {
        f"load{load}": {
            f"load{load}/{name}": bench.load_case(
                decoder, policy, bench.Traffic(4, (4,), 8, load), times, traces,
                f"load{load}/{name}",
            )
            for name, policy in policies.items()
        }
        for load in LOADS
    }  # fmt: skip
    varied = bench.Traffic(4, (2, 2, 8), 6, LOADS[0])
    mixed = {"mixed/none": bench.load_case(decoder, NONE, varied, times, traces, "mixed/none")}
    prefill = {
        f"prefill/{mix}/{how}": bench.prefill_case(decoder, lengths, mix, how, FITTED)
        for mix, lengths in (("chat", (2, 3, 15)), ("equal", (7, 7, 7)))
        for how in cost.PREFILL_WAYS
    }
    blocks = {"frontier": frontier, "service": service, **loads, "mixed": mixed, "prefill": prefill}
    return recorded(blocks), traces
