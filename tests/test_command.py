"""Flags that the entry points share."""

import pathlib

import pytest

from nextflow_jax import command


def make_parser():
    parser = command.command_parser("demo", "Shows flags.", example="--config X.py --out DIR")
    command.add_config_flag(parser)
    parser.add_argument("--out", required=True, type=command.folder)
    return parser


def test_overrides_are_told_from_flags():
    arguments = ["--config", "x.py:v", "--config.a.b=3", "--out", "o", "--config.c=[1, 2]"]
    options, overrides = command.parse(make_parser(), arguments)
    assert (options.config, options.out, overrides) == ("x.py:v", pathlib.Path("o"), ["a.b=3", "c=[1, 2]"])


@pytest.mark.parametrize("extra", [["--ouy", "1"], ["stray"], ["--config.a.b", "3"]])
def test_leftovers_are_a_usage_error(extra, capsys):
    with pytest.raises(SystemExit) as error:
        command.parse(make_parser(), ["--config", "x.py", "--out", "o", *extra])
    assert error.value.code == 2
    assert extra[-1] in capsys.readouterr().err


def test_a_url_is_no_folder(capsys):
    with pytest.raises(SystemExit) as error:
        command.parse(make_parser(), ["--config", "x.py", "--out", "gs://bucket/run"])
    assert error.value.code == 2
    assert "argument --out: gs://bucket/run: is a URL, not a folder; mount the bucket" in capsys.readouterr().err


def test_help_explains(capsys):
    with pytest.raises(SystemExit) as error:
        command.parse(make_parser(), ["--help"])
    said = capsys.readouterr().out
    assert error.value.code == 0
    assert "python -m nextflow_jax.demo" in said and "--config.train.steps=100" in said and "exit status" in said
