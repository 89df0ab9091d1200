"""Engines: what runs a program's loop. Torch anywhere, OpenVINO on a CPU, CUDA graphs on a GPU."""

from __future__ import annotations

import copy
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from policies.inference.choices import Precision
from policies.inference.networks import Parts
from policies.inference.program import Program, advance

__all__ = ["CudaGraphs", "Engine", "EngineMaker", "OpenVino", "Torch"]


# From this many samples on, the batched form of a body is the faster one.
BATCHED = 3
LARGEST_CACHE = 16


class Engine(Protocol):
    """Runs a program. ``run`` may be called from any thread, one at a time."""

    name: str

    def form(self, samples: int) -> Hashable:
        """What is built for this many samples; its first use takes seconds."""

    def run(self, x: torch.Tensor, projected: torch.Tensor, first: int) -> torch.Tensor:
        """x (M, Tp, D) at step ``first`` and projected (M, P) -> the clean chunk (M, Tp, D), in
        the network's range."""


EngineMaker = Callable[[Parts, Program, Precision, int], Engine]
"""An engine's class; the number bounds its own threads, if it has any. Any error means that this
machine cannot run it."""


class _Step(nn.Module):
    """One step of a program, coefficients (4,) given: x and the result as the body lays them."""

    def __init__(self, body: nn.Module, clip: float | None, precision: Precision) -> None:
        super().__init__()
        self.body, self.clip = body, clip
        self.dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
        if precision != "float32":  # a body may share weights with the policy
            self.body = copy.deepcopy(body).to(self.dtype)

    def forward(
        self, x: torch.Tensor, films: torch.Tensor, coefficients: torch.Tensor
    ) -> torch.Tensor:
        answer = self.body(x.to(self.dtype), films.to(self.dtype)).to(x.dtype)
        return advance(x, answer, coefficients, self.clip)


class Torch:
    """The loop as torch runs it, operator by operator."""

    name: str = "torch"

    def __init__(self, parts: Parts, program: Program, precision: Precision, threads: int) -> None:
        self._parts, self._program, self._precision = parts, program, precision
        self._coefficients = program.coefficients.to(next(parts.projection.parameters()).device)
        self._steps: dict[bool, _Step] = {}

    def form(self, samples: int) -> bool:
        on_cpu = self._coefficients.device.type == "cpu"
        return self._parts.forms > 1 and samples >= BATCHED and on_cpu

    def run(self, x: torch.Tensor, projected: torch.Tensor, first: int) -> torch.Tensor:
        """As ``Engine.run``."""
        form = self.form(len(x))
        if form not in self._steps:
            self._steps[form] = _Step(self._parts.body(form), self._program.clip, self._precision)
        step = self._steps[form]
        laid = self._parts.layout.lay(x)
        for k in range(first, len(self._program.times)):
            laid = step(laid, self._parts.projection.at(projected, k), self._coefficients[k])
        return self._parts.layout.unlay(laid)


class OpenVino:
    """Each step one call of a graph that OpenVINO compiled: weights packed once, activations and
    coefficients fused into the products.

    ``threads`` are not pinned: the cores of a robot's loops are not this process's to choose.
    ImportError without the package; RuntimeError for a ``device`` it does not have.
    """

    name: str = "openvino"

    def __init__(
        self,
        parts: Parts,
        program: Program,
        precision: Precision,
        threads: int,
        device: str = "CPU",
    ) -> None:
        import openvino

        self._openvino = openvino
        self._core = openvino.Core()
        self._parts, self._program, self._device = parts, program, device
        self._settings = {
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,
        }
        self._coefficients = list(program.coefficients.numpy())
        self._built: dict[bool, Any] = {}
        self._lock = threading.Lock()
        self._core.get_property(device, "FULL_DEVICE_NAME")

    def form(self, samples: int) -> bool:
        return self._parts.forms > 1 and samples >= BATCHED

    def run(self, x: torch.Tensor, projected: torch.Tensor, first: int) -> torch.Tensor:
        """As ``Engine.run``."""
        with self._lock:
            form = self.form(len(x))
            if form not in self._built:
                self._built[form] = self._build(form, x, projected)
            request, layout = self._built[form], self._parts.layout
            laid = layout.lay(x).numpy()
            for k in range(first, len(self._coefficients)):
                films = self._parts.projection.at(projected, k).numpy()
                inputs = [laid, films, self._coefficients[k]]
                laid = request.infer(inputs, share_inputs=True)[0]
            return layout.unlay(torch.from_numpy(laid))

    def _build(self, form: bool, x: torch.Tensor, projected: torch.Tensor) -> Any:
        """A request to the compiled step, for any number of samples. Through the frontend
        itself: the converter around it reports its use over the network."""
        from openvino.frontend import FrontEndManager
        from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

        body = self._parts.body(form)
        step = _Step(body, self._program.clip, "float32").eval()
        layout = self._parts.layout
        laid, films = layout.lay(x), self._parts.projection.at(projected, 0)
        example = (laid, films, torch.from_numpy(self._coefficients[0]))
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # torch.jit warns of itself
            decoder = TorchScriptPythonDecoder(
                step, example_input=example, trace_kwargs={"check_trace": False}
            )
        frontend = FrontEndManager().load_by_framework("pytorch")
        model = frontend.convert(frontend.load(decoder))
        shapes = [list(tensor.shape) for tensor in example]
        shapes[0][layout.samples_at] = shapes[1][0] = -1
        for port, shape in zip(model.inputs, shapes, strict=True):
            port.get_node().set_partial_shape(self._openvino.PartialShape(shape))
        model.validate_nodes_and_infer_types()
        compiled = self._core.compile_model(model, self._device, self._settings)
        return compiled.create_infer_request()


class CudaGraphs:
    """The whole loop as one CUDA graph a number of samples and first step: one launch a chunk.

    Policies replay on streams of their own, so a strong and a weak one, each called from its
    own thread, share the GPU. The last ``LARGEST_CACHE`` graphs are kept.
    """

    name: str = "cuda-graphs"

    def __init__(self, parts: Parts, program: Program, precision: Precision, threads: int) -> None:
        self._eager = Torch(parts, program, precision, threads)
        self._device = next(parts.projection.parameters()).device
        self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._graphs: OrderedDict[tuple[int, int], _Graph] = OrderedDict()
        self._lock = threading.Lock()

    def form(self, samples: int) -> bool:
        return self._eager.form(samples)

    def run(self, x: torch.Tensor, projected: torch.Tensor, first: int) -> torch.Tensor:
        """As ``Engine.run``; the result is ordered after it on the caller's stream."""
        key = (len(x), first)
        with self._lock, torch.cuda.device(self._device):
            caller = torch.cuda.current_stream()
            self._stream.wait_stream(caller)
            with torch.cuda.stream(self._stream):
                if key not in self._graphs:
                    self._graphs[key] = self._capture(x, projected, first)
                    if len(self._graphs) > LARGEST_CACHE:
                        self._graphs.popitem(last=False)
                self._graphs.move_to_end(key)
                chunk = self._graphs[key].replay(x, projected)
            caller.wait_stream(self._stream)
            for tensor in (x, projected):
                tensor.record_stream(self._stream)
            chunk.record_stream(caller)
            return chunk

    def _capture(self, x: torch.Tensor, projected: torch.Tensor, first: int) -> _Graph:
        x, projected = x.clone(), projected.clone()
        for _ in range(3):  # libraries choose kernels and take workspace outside of the capture
            self._eager.run(x, projected, first)
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Other threads (the weak policy's) may allocate meanwhile: their calls must not end it.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            chunk = self._eager.run(x, projected, first)
        return _Graph(graph, x, projected, chunk)


@dataclass(frozen=True, slots=True)
class _Graph:
    """A captured loop and the memory that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    x: torch.Tensor
    projected: torch.Tensor
    chunk: torch.Tensor

    def replay(self, x: torch.Tensor, projected: torch.Tensor) -> torch.Tensor:
        self.x.copy_(x)
        self.projected.copy_(projected)
        self.graph.replay()
        return self.chunk.clone()
