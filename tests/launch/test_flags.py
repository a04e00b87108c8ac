import os
import subprocess
import sys

import pytest

PLATFORMS = ("v5e", "v5p", "v6e", "tpu7x", "gpu", "cpu")
VARIABLES = {"LIBTPU_INIT_ARGS", "XLA_FLAGS", "XLA_PYTHON_CLIENT_MEM_FRACTION", "CUDA_DEVICE_MAX_CONNECTIONS"}


def variables(launch, platform):
    done = launch("flags.sh", platform)
    assert done.returncode == 0
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


def test_every_row_says_what_it_does_and_where_it_is_from(launch):
    rows = [line.split(" | ") for line in launch("flags.sh", "--table").stdout.splitlines()]
    assert {len(row) for row in rows} == {5}
    for platforms, variable, value, what, source in rows:
        assert set(platforms.split()) <= set(PLATFORMS) and variable in VARIABLES
        assert value and " " not in value and len(what) > 10 and source[0] in "MNJ"


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_platform_has_its_rows_in_order_and_each_flag_once(launch, platform):
    rows = [line.split(" | ") for line in launch("flags.sh", "--table").stdout.splitlines()]
    got = variables(launch, platform)
    for variable in VARIABLES:
        values = [row[2] for row in rows if platform in row[0].split() and row[1] == variable]
        assert got.get(variable, "").split() == values
        names = [value.split("=")[0] for value in values]
        assert len(set(names)) == len(names)


def test_an_unknown_platform_is_refused_with_those_there_are(launch):
    done = launch("flags.sh", "v9")
    assert done.returncode == 2 and "use one of: v5e v5p v6e tpu7x gpu cpu" in done.stderr


@pytest.mark.parametrize("extra", ["", " --xla_gpu_no_such_flag=true"])
def test_jaxlib_knows_the_gpu_flags_and_no_others(launch, extra):
    flags = variables(launch, "gpu")["XLA_FLAGS"] + extra
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    program = [sys.executable, "-c", "import jax; jax.devices()"]
    started = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=60)
    assert (started.returncode == 0) == (extra == ""), started.stderr
