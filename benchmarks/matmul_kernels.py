"""
Find the faster kernel for the products of linear layers on this processor: MKL, torch's usual kernel, or oneDNN.

    python benchmarks/matmul_kernels.py                  # about two minutes, on a machine without other work
    python benchmarks/matmul_kernels.py --rounds 3       # a try

The last output is the processor's line for the table ``_ONEDNN_FROM`` in ``ddpg_ext/common/matmul_kernels.py``.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch as th

from ddpg_ext.common import matmul_kernels

BATCHES = (16, 64, 256, 1024)
#: outputs and inputs of layers: the paper's, HalfCheetah's first, common ones
LAYERS = ((300, 400), (400, 17), (64, 64), (256, 256), (1024, 1024))
PRODUCTS = ("forward", "weight gradient", "input gradient")


def kernels(batch: int, n_out: int, n_in: int) -> dict[str, dict[str, Callable[[], th.Tensor]]]:
    """Return the three products of a layer by each kernel, called like the executors call them."""
    x, grad, weight, bias = th.randn(batch, n_in), th.randn(batch, n_out), th.randn(n_out, n_in), th.randn(n_out)
    outs = [matmul_kernels.memory_for_product(*shape) for shape in ((batch, n_in, n_out), (n_out, batch, n_in))]
    out, grad_weight, grad_x = *outs, matmul_kernels.memory_for_product(batch, n_out, n_in)
    onednn = th.ops.mkldnn._linear_pointwise
    by_feature = 16 <= batch <= n_out // 2
    mkl = {
        "forward": lambda: th.addmm(bias, x, weight.t(), out=out),
        "weight gradient": lambda: th.mm(grad.t(), x, out=grad_weight),
        "input gradient": lambda: th.mm(grad, weight, out=grad_x),
    }
    other = {
        "forward": (lambda: onednn(weight, x, None, "none", [], "").t().add_(bias))
        if by_feature
        else (lambda: onednn(x, weight, bias, "none", [], "")),
        "weight gradient": lambda: onednn(grad.t(), x.t(), None, "none", [], ""),
        "input gradient": lambda: onednn(grad, weight.t(), None, "none", [], ""),
    }
    return {"MKL": mkl, "oneDNN": other}


def measure(calls: dict[str, Callable[[], th.Tensor]], rounds: int) -> dict[str, float]:
    """Return the median microseconds of each call; the calls take turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    n_calls = 1
    while n_calls < 4096 and _seconds(calls["MKL"], n_calls) < 2e-3:
        n_calls *= 2
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(_seconds(call, n_calls) / n_calls * 1e6)
    return {name: statistics.median(values) for name, values in times.items()}


def _seconds(call: Callable[[], th.Tensor], n_calls: int) -> float:
    start = time.perf_counter()
    for _ in range(n_calls):
        call()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=101, help="rounds per product")
    args = parser.parse_args()
    th.set_num_threads(1)
    print(f"{matmul_kernels.detect_processor()}, torch {th.__version__}, one thread; microseconds, MKL / oneDNN")
    print("\n| batch | layer | " + " | ".join(PRODUCTS) + " |\n" + "|---" * 5 + "|")
    #: multiplications of a product, and MKL's time of the layer's three products over oneDNN's
    speedups: list[tuple[int, float]] = []
    with th.inference_mode():
        for batch in BATCHES:
            for n_out, n_in in LAYERS:
                both = kernels(batch, n_out, n_in)
                calls = [{name: products[product] for name, products in both.items()} for product in PRODUCTS]
                times = [measure(call, args.rounds) for call in calls]
                cells = [" / ".join(f"{value:.4g}" for value in time.values()) for time in times]
                print(f"| {batch} | {n_in} to {n_out} | " + " | ".join(cells) + " |", flush=True)
                totals = {name: sum(time[name] for time in times) for name in both}
                speedups.append((batch * n_out * n_in, totals["MKL"] / totals["oneDNN"]))
    faster = [size for size, _ in speedups if statistics.geometric_mean(s for n, s in speedups if n >= size) > 1.02]
    if faster:
        print(f"\n{matmul_kernels.detect_processor()}: {min(faster):_},")
    else:
        print("\nNo line is needed, because oneDNN is not faster on average from any size on.")


if __name__ == "__main__":
    main()
