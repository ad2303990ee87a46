"""Exports the network to an ONNX file, whose output is compared with torch before it is kept.

The export uses torch's tracing exporter: it is the same in every supported version of torch, needs
no further package, and takes a second; the newer exporter takes a minute.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from c2fdft_cli.core.block import Block
from c2fdft_cli.core.layers import PixelNorm
from c2fdft_cli.core.network import DFT, SIZE_MULTIPLE
from c2fdft_cli.engine.weights.checkpoint import Checkpoint
from c2fdft_cli.errors import ResourceError, UsageError
from c2fdft_cli.files.writing import atomic_path
from c2fdft_cli.vocabulary import WeightSet

MODULES = ("onnx", "onnxruntime")
OPSET = 18
MAX_ERROR = 1e-4
MAX_BYTES = 2_000_000_000
"""An ONNX file is one protocol buffer message, which is limited to 2 GiB."""
CHECKED = ((2, 16, 24), (1, 40, 32), (3, 24, 32))
"""The sizes (n, h, w) at which the file is checked; the network is traced at the first.

They are not smaller because attention over one or two pixels magnifies rounding errors a
hundredfold, in torch too.
"""

EXPLAINED = (
    "The network of C2F-DFT: eps = net(x, t). "
    "x: [n, 6, h, w] float32, the condition 2 * lq - 1 (lq: RGB in [0, 1]) and the noisy image x_t "
    "along axis 1; t: [n] float32, timesteps; eps: [n, 3, h, w] float32, the noise in x_t. "
    f"h and w are multiples of {SIZE_MULTIPLE}. "
    "metadata: grid (descending timesteps to sample at), alpha_bar (at these timesteps), eta (the "
    "noise that the sampler adds in each step, 0 to 1), schedule (of beta: name, timesteps, "
    "beta_start, beta_end), size_multiple, task, weights, c2fdft."
)


class _PerImageNorm(nn.Module):
    """A `PixelNorm` without its shortcut for a single timestep, which would fix the batch size."""

    zero: Tensor

    def __init__(self, norm: PixelNorm) -> None:
        super().__init__()
        self.norm = norm
        self.register_buffer("zero", torch.zeros(1, norm.body.weight.shape[0]), persistent=False)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.norm(x, self.zero) + time[:, None, None]  # type: ignore[no-any-return]


class _Traceable(DFT):
    """The network without the check of the input size, which cannot be traced."""

    def check_input(self, x: Tensor) -> None:
        """Accept every size: during tracing the sizes are symbolic."""


def export_onnx(checkpoint: Checkpoint, path: Path, weights: WeightSet) -> float:
    """Write the network as ONNX and return its largest relative error against torch.

    Raises:
        UsageError: the network is too large for one ONNX file.
        ResourceError: the path cannot be written, or the error is above `MAX_ERROR`; no file is
            left then.
    """
    net = checkpoint.network(weights)
    if sum(p.numel() * 4 for p in net.parameters()) > MAX_BYTES:
        raise UsageError(
            "the network is too large for one ONNX file (2 GB)",
            where=checkpoint.path,
            hint="use safetensors",
        )
    model = onnx_model(net, asdict(checkpoint.meta.network))
    _describe(model, checkpoint, weights)
    with atomic_path(path) as temporary:
        temporary.write_bytes(model.SerializeToString())
        error = largest_error(temporary, net)
        if not error <= MAX_ERROR:  # NaN too
            raise ResourceError(
                f"the ONNX file differs from torch by {error:.1e} (allowed: {MAX_ERROR:.0e})",
                where=path,
                hint=f"try another onnxruntime ({version('onnxruntime')}) or torch",
            )
    return error


def onnx_model(net: DFT, arguments: dict[str, Any]) -> Any:
    """Convert a network that was made with `arguments` to an `onnx.ModelProto` for all sizes."""
    import onnx

    sizes = {0: "n", 2: "h", 3: "w"}
    buffer = io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        # It warns of shapes that become constants; `largest_error` checks several sizes.
        warnings.simplefilter("ignore")
        with _vecdot():
            torch.onnx.export(
                _traceable(net, arguments),
                _example(*CHECKED[0], channels=net.in_channels),
                buffer,  # type: ignore[arg-type]  # the tracing exporter takes a buffer
                dynamo=False,
                opset_version=OPSET,
                input_names=["x", "t"],
                output_names=["eps"],
                dynamic_axes={"x": sizes, "t": {0: "n"}, "eps": sizes},
            )
    return onnx.load_model_from_string(buffer.getvalue())


def largest_error(path: Path, net: DFT) -> float:
    """Return the largest relative error of an ONNX file against `net`, over the sizes of `CHECKED`.

    The relative error is the largest difference divided by the largest value. `net` is on the CPU.
    """
    import onnxruntime

    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        path.read_bytes(), quiet, providers=["CPUExecutionProvider"]
    )
    errors = []
    for size in CHECKED:
        x, t = _example(*size, channels=net.in_channels)
        with torch.inference_mode():
            want = net(x, t)
        got = torch.from_numpy(session.run(["eps"], {"x": x.numpy(), "t": t.numpy()})[0])
        errors.append((got - want).abs().max() / want.abs().max())
    return torch.stack(errors).max().item()  # NaN stays NaN


def _example(n: int, h: int, w: int, channels: int) -> tuple[Tensor, Tensor]:
    """Make x and t by a formula, without random numbers."""
    x = torch.sin(0.37 * torch.arange(n * channels * h * w, dtype=torch.float64)).float()
    return x.view(n, channels, h, w), torch.linspace(999, 10, n)


def _traceable(net: DFT, arguments: dict[str, Any]) -> DFT:
    with torch.device("meta"):
        traceable = _Traceable(**arguments)
    traceable.load_state_dict(net.state_dict(), assign=True)
    for block in [module for module in traceable.modules() if isinstance(module, Block)]:
        block.norm1 = _PerImageNorm(block.norm1)  # type: ignore[assignment]
        block.norm2 = _PerImageNorm(block.norm2)  # type: ignore[assignment]
    return traceable.requires_grad_(False).eval()


@contextmanager
def _vecdot() -> Iterator[None]:
    """Make linalg_vecdot, the only operator that the exporter does not know, known to it."""

    def vecdot(graph: Any, a: Any, b: Any, _dim: Any) -> Any:
        axis = graph.op("Constant", value_t=torch.tensor([1]))  # the pixels: [n, h * w, c]
        return graph.op("ReduceSum", graph.op("Mul", a, b), axis, keepdims_i=0)

    name = "aten::linalg_vecdot"
    torch.onnx.register_custom_op_symbolic(name, vecdot, OPSET)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.onnx.unregister_custom_op_symbolic(name, OPSET)  # type: ignore[attr-defined]


def _describe(model: Any, checkpoint: Checkpoint, weights: WeightSet) -> None:
    """Store in the model what a user needs to run it: inputs, timesteps, eta, noise schedule."""
    import onnx

    meta, timesteps = checkpoint.meta, checkpoint.timesteps()
    model.doc_string = model.graph.doc_string = EXPLAINED
    onnx.helper.set_model_props(
        model,
        {
            "task": checkpoint.task() or "unknown",
            "weights": weights,
            "size_multiple": str(SIZE_MULTIPLE),
            "grid": json.dumps(timesteps),
            "alpha_bar": json.dumps(checkpoint.alpha_bar()[timesteps].tolist()),
            "eta": json.dumps(checkpoint.eta()),
            "schedule": json.dumps(asdict(meta.diffusion)),
            "c2fdft": meta.to_json(),
        },
    )
