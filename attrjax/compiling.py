"""How hard a backend's compiler tries."""

import jax


def quick() -> dict[str, int] | None:
    """``compiler_options`` of ``jax.jit`` for large programs of a short run; None for the backend's own.

    XLA for CPUs has LLVM optimize all that it emits as far as it can, which is a third to a half of the time
    that these take to compile. At level 1 a train step of the bundled base and the drawing of its pairs run
    as fast (docs/performance.md): what takes long in them are matrix products, which are not LLVM's. Sampling
    runs a fifth slower at level 1, and is left alone.
    """
    return {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
