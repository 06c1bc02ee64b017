"""How long will a step take with quantized weights, told without running one?

A step is its products with weights plus a rest (attention, norms, sampling, launches) that does not
know the weights' format. The products of each kernel are timed alone, at odd numbers of rows; the
rest is what unquantized steps take beyond their products. No case that is predicted is in a fit.
Chapter: chapters/10_quantization.md    Lab: labs/10_quantization.ipynb
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from inferlab.backends.base import Backend, load_backend
from inferlab.backends.torch import TorchBackend
from inferlab.bench import Shape, expected_metrics, projection_run, quantized_weights
from inferlab.calibration import quick_ceilings
from inferlab.errors import UserError
from inferlab.fitting import ROUNDS, Fitted, measured_shapes
from inferlab.models.config import ModelConfig
from inferlab.models.cost import (
    StepCost,
    decode_cost,
    head_params,
    layer_matmul_params,
    prefill_cost,
    weight_read_bytes,
)
from inferlab.models.decoder import Decoder
from inferlab.models.projections import projections
from inferlab.quant.formats import WeightFormat
from inferlab.roofline import Ceilings, fit_overhead, predict_s

# Odd, so that they are no batch size of a lab; many rows for the prefill. A GPU takes more of them.
FIT_ROWS = {"cpu": (1, 3, 5, 7, 13, 27, 61, 149), "cuda": (1, 3, 7, 13, 27, 61, 149, 509, 2039)}
_PRODUCTS: dict[tuple, StepProducts] = {}
_RESTS: dict[tuple, Fitted] = {}
LEAST_REST_RATIO = 0.02  # of a step: where products alone took as long as the step, by noise


@dataclass(frozen=True, slots=True)
class ProductFit:
    """Seconds that one kernel takes for some of a step's products, by number of rows.

    once_s + tiles * tile_s + rows * row_s: weights are brought in once, unpacked once for each
    tile of `row_tile` rows, and multiplied for each row. At few rows the first two are all there
    is; at many, the cost of a row is tile_s / row_tile + row_s.
    """

    once_s: float
    tile_s: float
    row_s: float
    row_tile: int = 1

    def seconds(self, rows: int) -> float:
        """Expected seconds for `rows` rows."""
        return self.once_s + math.ceil(rows / self.row_tile) * self.tile_s + rows * self.row_s

    @property
    def per_row_s(self) -> float:
        """Seconds of one more row where there are many."""
        return self.tile_s / self.row_tile + self.row_s


@dataclass(frozen=True, slots=True)
class StepProducts:
    """All products with weights of a step: the layers' see every row, the head's one a sequence."""

    layers: ProductFit
    head: ProductFit

    def seconds(self, rows: int, head_rows: int) -> float:
        """Expected seconds; in decode `rows` and `head_rows` are B, in prefill B T and B."""
        return self.layers.seconds(rows) + self.head.seconds(head_rows)

    def ceilings(
        self,
        config: ModelConfig,
        dtype: str,
        weight_format: WeightFormat | None = None,
        keep: tuple[str, ...] = (),
    ) -> Ceilings:
        """The kernel's own ceilings: weight bytes over the time of one row, FLOPs of a row over
        the time of one more row. What `roofline.crossover_batch_size` takes."""
        size = weight_read_bytes(config, dtype, weight_format, keep)
        flops = 2 * (config.num_layers * layer_matmul_params(config) + head_params(config))
        per_row_s = self.layers.per_row_s + self.head.per_row_s
        if per_row_s <= 0:
            raise UserError("more rows cost no time in this fit: measure more rows")
        return Ceilings(size / self.seconds(1, 1), flops / per_row_s)


@dataclass(frozen=True, slots=True)
class StepFit:
    """What predicts a step: its products by one kernel, and its rest as Ceilings.

    The rest's floor is the reading of keys and values and the arithmetic of attention; its
    overheads are fitted. Prefill and decode apart.
    """

    products: StepProducts
    rest: Fitted


def fit_products(measured_s: Mapping[int, float], row_tile: int = 1) -> ProductFit:
    """Fit seconds by number of rows: least squares of the relative error, no term negative."""
    if len(measured_s) < 2 or min(measured_s) < 1 or min(measured_s.values()) <= 0:
        raise UserError("a fit of products needs two numbers of rows and times above zero")
    rows = np.array(list(measured_s), dtype=float)
    seconds = np.array(list(measured_s.values()))
    tiles = np.ceil(rows / row_tile) if row_tile > 1 else np.zeros_like(rows)
    terms = np.column_stack([np.ones_like(rows), tiles, rows]) / seconds[:, None]
    sizes = terms.max(axis=0)  # columns of one size: nnls stops at an absolute tolerance
    sizes[sizes == 0] = 1
    found, _ = nnls(terms / sizes, np.ones_like(rows))
    once_s, tile_s, row_s = (float(value) for value in found / sizes)
    return ProductFit(once_s, tile_s, row_s, row_tile)


def measure_products(decoder: Decoder, part: str, rounds: int = ROUNDS) -> dict[int, float]:
    """Median seconds by number of rows of the products of `part` (layers, head, all), alone.

    Numbers of rows take turns, after a warm-up, so that drift falls on all of them.
    """
    runs = {rows: projection_run(decoder, rows, part) for rows in FIT_ROWS[decoder.device.type]}
    for run in runs.values():
        run()
    samples = [{rows: run()["step_s"] for rows, run in runs.items()} for _ in range(rounds)]
    return {rows: statistics.median(sample[rows] for sample in samples) for rows in runs}


def fit_step_products(decoder: Decoder) -> StepProducts:
    """Time the decoder's products alone and fit them, layers and head apart."""
    tiles = {name: getattr(module, "row_tile", 1) for name, module in projections(decoder)}
    layers = max(tile for name, tile in tiles.items() if name != "head")
    return StepProducts(
        fit_products(measure_products(decoder, "layers"), layers),
        fit_products(measure_products(decoder, "head"), tiles["head"]),
    )


def fit_rest(baseline: TorchBackend, products: StepProducts, device: str) -> Fitted:
    """The rest of a step, prefill and decode: what unquantized steps take beyond their products.

    `products` are those of `baseline`. The shapes are the ones that `fitting` uses.
    """
    config, dtype = baseline.config, baseline.dtype
    limits = quick_ceilings(config, dtype, device)
    prefill, decode = [], []
    for shape, metrics in measured_shapes(baseline, device).items():
        batch, tokens = shape.batch_size, shape.batch_size * shape.prompt_len
        ttft_s, tpot_s = metrics["ttft_s"], metrics["tpot_s"]
        first = max(ttft_s - products.seconds(tokens, batch), LEAST_REST_RATIO * ttft_s)
        later = max(tpot_s - products.seconds(batch, batch), LEAST_REST_RATIO * tpot_s)
        prefill.append((_prefill_rest(config, dtype, shape), tokens, first))
        decode.append((_decode_rest(config, dtype, shape), batch, later))
    return Fitted(*(fit_overhead(*zip(*rows, strict=True), limits) for rows in (prefill, decode)))


def fit_format(backend: TorchBackend, device: str) -> StepFit:
    """What predicts the steps of quantized `backend`; measured once in a process for each kernel.

    The rest comes from the same model with plain random weights, which take as long.
    """
    kept = (backend.config, backend.dtype, device)
    rest = (*kept, backend.step)
    if rest not in _RESTS:
        _RESTS[rest] = _fit_plain_rest(*rest)
    key = (*kept, *quantized_weights(backend), backend.kernel)
    if key not in _PRODUCTS:
        _PRODUCTS[key] = fit_step_products(backend.decoder)
    return StepFit(_PRODUCTS[key], _RESTS[rest])


def _fit_plain_rest(config: ModelConfig, dtype: str, device: str, step: str) -> Fitted:
    plain = load_backend("torch", config, dtype, device, weights="random")
    products = fit_step_products(plain.decoder)  # of packed weights: a compiler packs them too
    if step != "eager":
        plain = load_backend("torch", config, dtype, device, weights="random", step=step)
    return fit_rest(plain, products, device)


def predict(backend: Backend, shape: Shape, fit: StepFit) -> dict[str, float]:
    """Expected TTFT, TPOT, output throughput and MBU of `shape`, as `bench.predict` names them.

    The floors are those of the machine with weights of the format's width.
    """
    config, dtype = backend.config, backend.dtype
    batch, tokens = shape.batch_size, shape.batch_size * shape.prompt_len
    products, rest = fit.products, fit.rest
    ttft_s = products.seconds(tokens, batch) + predict_s(
        _prefill_rest(config, dtype, shape), rest.prefill, tokens
    )
    tpot_s = products.seconds(batch, batch) + predict_s(
        _decode_rest(config, dtype, shape), rest.decode, batch
    )
    return expected_metrics(
        config, dtype, shape, ttft_s, tpot_s, rest.decode, *quantized_weights(backend)
    )


def _prefill_rest(config: ModelConfig, dtype: str, shape: Shape) -> StepCost:
    """A prefill without its products: keys, values and the arithmetic of attention."""
    whole = prefill_cost(config, dtype, shape.batch_size, shape.prompt_len)
    per_sequence = shape.prompt_len * config.num_layers * layer_matmul_params(config)
    return _without_products(whole, shape.batch_size * (per_sequence + head_params(config)))


def _decode_rest(config: ModelConfig, dtype: str, shape: Shape) -> StepCost:
    """A decode step without its products, likewise."""
    whole = decode_cost(config, dtype, shape.batch_size, shape.mean_context_len)
    per_row = config.num_layers * layer_matmul_params(config) + head_params(config)
    return _without_products(whole, shape.batch_size * per_row)


def _without_products(cost: StepCost, multiplications: int) -> StepCost:
    return dataclasses.replace(cost, weight_bytes=0, flops=cost.flops - 2 * multiplications)
