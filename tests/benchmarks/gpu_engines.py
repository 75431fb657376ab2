"""What PyTorch and JAX do differently in `tests.benchmarks.gpu`."""

import contextlib
import importlib.util
import time

import numpy as np

PRECISIONS = ("float32", "tensorfloat32", "bfloat16")

# Rows of a chunk of the bare products.
_ROWS = 8192


class Torch:
    """PyTorch, eager, and compiled where a part says so."""

    usual = "eager"
    peers = {
        "linear_cross_entropy": "torch",
        "cut_cross_entropy": "cut_cross_entropy",
        "liger": "liger_kernel",
        "sentence_transformers": "sentence_transformers",
    }

    def __init__(self, dry):
        import torch

        from tests.benchmarks import on_torch

        if not dry and not torch.cuda.is_available():
            raise SystemExit("PyTorch sees no GPU. `--dry` needs none.")
        self._torch, self._contenders = torch, on_torch
        self._device = "cpu" if dry else "cuda"
        # The compiler of a CPU would take longer than all the rest.
        self._compiler = "eager" if dry else "inductor"
        self.name = f"PyTorch {torch.__version__}"
        self.device = "CPU" if dry else torch.cuda.get_device_name()
        if not hasattr(torch.nn, "LinearCrossEntropyOptions"):
            self.peers = dict(self.peers, linear_cross_entropy="not there")

    @contextlib.contextmanager
    def precision(self, name):
        """TensorFloat-32, or what the vectors have."""
        before = self._torch.get_float32_matmul_precision()
        setting = "high" if name == "tensorfloat32" else "highest"
        self._torch.set_float32_matmul_precision(setting)
        try:
            yield
        finally:
            self._torch.set_float32_matmul_precision(before)

    def step(self, contender, inputs, dtype):
        """Returns a function that gives the loss and both gradients."""
        torch = self._torch
        with torch.device(self._device):
            if contender == "products":
                vectors = (inputs.query, inputs.candidate)
                vectors = [
                    torch.tensor(v, dtype=getattr(torch, dtype))
                    for v in vectors
                ]
                return lambda: _products(*vectors)
            build = getattr(self._contenders, contender)
            return build(inputs, dtype=getattr(torch, dtype))

    def differentiate(self, loss_of, query, candidate, dtype, compiled):
        """Returns the loss and both gradients as NumPy arrays."""
        torch = self._torch
        vectors = [
            torch.tensor(
                v,
                dtype=getattr(torch, dtype),
                device=self._device,
                requires_grad=True,
            )
            for v in (query, candidate)
        ]
        if compiled:
            torch.compiler.reset()
            loss_of = torch.compile(loss_of, backend=self._compiler)
        loss = loss_of(*vectors)
        gradients = torch.autograd.grad(loss, vectors)
        return [t.detach().double().cpu().numpy() for t in (loss, *gradients)]

    def weight_gradients(self, loss_of, weights):
        """Returns the gradients of Keras variables as NumPy arrays."""
        gradients = self._torch.autograd.grad(
            loss_of(), [w.value for w in weights]
        )
        return [g.detach().double().cpu().numpy() for g in gradients]

    def measure(self, step, seconds):
        """Returns the least time of a few repeats, and the extra memory."""
        cuda, on_gpu = self._torch.cuda, self._device == "cuda"
        wait = cuda.synchronize if on_gpu else lambda: None
        if on_gpu:
            cuda.empty_cache()
            cuda.reset_peak_memory_stats()
            before = cuda.memory_allocated()
        best = _repeat(step, wait, seconds)
        extra = None
        if on_gpu:
            extra = cuda.max_memory_allocated() - before
        return {"seconds": best, "extra_bytes": extra}

    def free_bytes(self):
        """Returns how much memory is free."""
        if self._device == "cpu":
            return 2**30
        self._torch.cuda.empty_cache()
        return self._torch.cuda.mem_get_info()[0]


class Jax:
    """JAX, compiled; and eager where a part says so."""

    usual = "compiled"
    peers: dict = {}

    def __init__(self, dry):
        import jax

        from tests.benchmarks import on_jax

        (device, *_) = jax.devices()
        if not dry and device.platform == "cpu":
            raise SystemExit("JAX sees no GPU. `--dry` needs none.")
        self._jax, self._contenders = jax, on_jax
        self._device = device
        self.name, self.device = f"JAX {jax.__version__}", device.device_kind

    def precision(self, name):
        """TensorFloat-32, or what the vectors have."""
        if name == "tensorfloat32":
            return self._jax.default_matmul_precision("tensorfloat32")
        return self._jax.default_matmul_precision("float32")

    def step(self, contender, inputs, dtype):
        """Returns a function that gives the loss and both gradients."""
        if contender != "products":
            return getattr(self._contenders, contender)(inputs, dtype)
        vectors = (inputs.query, inputs.candidate)
        vectors = [self._jax.numpy.asarray(v, dtype) for v in vectors]
        compiled = self._jax.jit(_products)
        return lambda: self._jax.block_until_ready(compiled(*vectors))

    def differentiate(self, loss_of, query, candidate, dtype, compiled):
        """Returns the loss and both gradients as NumPy arrays."""
        gradients_of = self._jax.value_and_grad(loss_of, argnums=(0, 1))
        if compiled:
            gradients_of = self._jax.jit(gradients_of)
        vectors = [
            self._jax.numpy.asarray(v, dtype) for v in (query, candidate)
        ]
        loss, gradients = gradients_of(*vectors)
        return [np.asarray(t, "float64") for t in (loss, *gradients)]

    def weight_gradients(self, loss_of, weights):
        """Returns the gradients of Keras variables as NumPy arrays."""
        import keras

        def of_values(values):
            pairs = list(zip(weights, values))
            with keras.StatelessScope(state_mapping=pairs):
                return loss_of()

        values = [w.value for w in weights]
        gradients = self._jax.jit(self._jax.grad(of_values))(values)
        return [np.asarray(g, "float64") for g in gradients]

    def measure(self, step, seconds):
        """Returns the least time of a few repeats, and the extra memory."""
        best = _repeat(step, lambda: None, seconds)
        # The peak of the process does not go back; XLA's own plan tells.
        extra = getattr(step, "extra_bytes", lambda: None)()
        return {"seconds": best, "extra_bytes": extra}

    def free_bytes(self):
        """Returns how much memory is free."""
        found = self._device.memory_stats() or {}
        if "bytes_limit" not in found:
            return 2**30
        return found["bytes_limit"] - found["bytes_in_use"]


def engine(dry):
    """Returns that of the Keras backend."""
    import keras

    kinds = {"torch": Torch, "jax": Jax}
    if keras.backend.backend() not in kinds:
        raise SystemExit("Set KERAS_BACKEND to torch or jax.")
    return kinds[keras.backend.backend()](dry)


def installed(module):
    """Whether a library is there."""
    return importlib.util.find_spec(module) is not None


def _repeat(step, wait, seconds):
    """Returns the least time; a long step is repeated once."""
    step()
    wait()
    times = []
    while sum(times) < seconds:
        start = time.perf_counter()
        step()
        wait()
        times.append(time.perf_counter() - start)
    return min(times)


def _products(query, candidate):
    """The three matrix products that any exact gradient needs."""
    d_query, d_candidate = [], 0.0
    for start in range(0, len(query), _ROWS):
        rows = query[start : start + _ROWS]
        scores = rows @ candidate.T
        d_query.append(scores @ candidate)
        d_candidate = d_candidate + scores.T @ rows
    return d_query, d_candidate
