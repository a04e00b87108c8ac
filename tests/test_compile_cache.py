"""The persistent compilation cache is where it should be, or off."""

import jax
import pytest

from nextflow_jax import compile_cache


@pytest.fixture(autouse=True)
def keep_configuration():
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)


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
