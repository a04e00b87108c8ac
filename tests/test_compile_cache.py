"""The persistent compilation cache is where it should be, or off."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from nextflow_jax import compile_cache


@pytest.fixture(autouse=True)
def keep_configuration():
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_folder_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv(compile_cache.DIRECTORY_VARIABLE, str(tmp_path / "cache"))
    folder = compile_cache.enable()
    assert folder.parent == tmp_path / "cache" and folder.is_dir()
    assert jax.config.jax_compilation_cache_dir == str(folder)


def test_empty_variable_switches_it_off(monkeypatch):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv(compile_cache.DIRECTORY_VARIABLE, "")
    assert compile_cache.enable() is None
    assert jax.config.jax_compilation_cache_dir == before


def test_folder_that_cannot_be_made_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    assert compile_cache.enable(tmp_path / "file") is None


def test_switched_off_nothing_is_read_or_kept(tmp_path):
    def kept(factor):
        jax.jit(lambda x: factor * x).lower(1.0).compile()
        return sum(1 for file in folder.rglob("*-cache"))

    folder = compile_cache.enable(tmp_path)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    compilation_cache.reset_cache()
    assert kept(2.0) == 1
    with compile_cache.switched_off():
        assert kept(3.0) == 1
    assert kept(4.0) == 2
