"""What every test shares: eight simulated devices, run-time shape checks and a compile cache, set before JAX loads."""

import os
import tempfile

XLA_FLAGS = (
    "--xla_force_host_platform_device_count=8",
    # Tests compile far more than they compute: this takes a third off.
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
)
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *XLA_FLAGS]).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Commands that tests call turn the compile cache on themselves; it must not be the user's.
os.environ["NEXTFLOW_JAX_CACHE"] = f"{tempfile.gettempdir()}/nextflow_jax_test_cache_{os.getuid()}"

import jaxtyping  # noqa: E402  (jaxtyping loads JAX, which reads the variables above)

jaxtyping.install_import_hook("nextflow_jax", "beartype.beartype")

from nextflow_jax import compile_cache  # noqa: E402  (the hook above must come first)

compile_cache.enable()
