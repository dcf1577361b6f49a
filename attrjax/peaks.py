"""What accelerators can do at most. It imports nothing, so that it can be asked before JAX is set up."""

# Dense bfloat16 operations in a second, as the makers publish them (cloud.google.com/tpu/docs, NVIDIA's data
# sheets, without sparsity), by how jax calls the device; the first that a name begins with.
PEAKS = {
    "TPU v6": 918e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v4": 275e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H100": 989e12,
    "NVIDIA A100": 312e12,
}
