"""How hard a backend's compiler tries."""

import jax


def quick() -> dict[str, int] | None:
    """``compiler_options`` of ``jax.jit`` for programs that are matrix products above all; None for the
    backend's own.

    XLA for CPUs has LLVM optimize all that it emits as far as it can, which is a third to a half of the time
    that these take to compile. At level 1 a train step runs as fast, and the drawing of pairs, a tenth of it,
    up to a sixth slower (docs/performance.md): the products are not LLVM's. Sampling runs a fifth slower, and
    is left alone.
    """
    return {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
