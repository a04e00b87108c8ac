"""The sample command: what it writes, and one clear line for everything that can be wrong."""

import json

import numpy as np
import pytest
from PIL import Image

from nextflow_jax import sample
from nextflow_jax.bundle import DECODER_FILE, save_bundle
from nextflow_jax.errors import run_entry_point
from tests import tiny_models


@pytest.fixture(scope="module")
def bundle_path(tmp_path_factory):
    source = tiny_models.bundle(max_positions=64)
    return save_bundle(
        tmp_path_factory.mktemp("sample") / "bundle",
        vision_tokenizer=source.codec,
        text_tokenizer=source.text_tokenizer,
        decoder=source.decoder,
        defaults=source.defaults,
        origin=source.origin,
    )


@pytest.fixture(autouse=True)
def tests_have_their_own_compile_cache(monkeypatch):
    monkeypatch.setattr(sample.compile_cache, "enable", lambda: None)


def run(*arguments):
    """Exit status of the command."""
    with pytest.raises(SystemExit) as exit_:
        run_entry_point(sample.main, [str(argument) for argument in arguments])
    return exit_.value.code


def pixels(path):
    return np.asarray(Image.open(path))


def test_prompts_become_pictures_at_their_own_size_with_every_scale(bundle_path, tmp_path, capsys):
    arguments = ["--bundle", bundle_path, "--prompt", "a red sun", "--prompt", "moon", "--num", 2, "--seed", 5]
    arguments += ["--size", "8x16", "--temperature", "1.0,0.5", "--top_k", 4, "--save_scales", "--out", tmp_path / "o"]
    assert run(*arguments) == 0
    report = json.loads((tmp_path / "o" / "result.json").read_text())
    assert [(answer["document"], answer["seed"]) for answer in report["answers"]] == [
        (["a red sun"], 5),
        (["a red sun"], 6),
        (["moon"], 5),
        (["moon"], 6),
    ]
    assert report["answers"][0]["settings"]["temperature"] == [1.0, 0.5]
    assert report["bundle"]["origin"] == {"step": 7}
    pictures = []
    for answer in report["answers"]:
        [segment] = answer["segments"]
        stages = [pixels(tmp_path / "o" / name) for name in segment["scales"]]
        pictures.append(pixels(tmp_path / "o" / segment["image"]))
        assert [stage.shape for stage in stages] == [(8, 16, 3)] * 3 and np.array_equal(stages[-1], pictures[-1])
    assert not np.array_equal(pictures[0], pictures[1]), "seeds differ"
    assert "result.json" in capsys.readouterr().out


def test_a_document_is_continued(bundle_path, tmp_path, capsys):
    Image.fromarray(tiny_models.picture(0)).save(tmp_path / "sun.png")
    document = {
        "segments": [{"image": "sun.png"}, {"text": "make it blue"}],
        "generate": {"begin_with_image": True, "max_text_tokens": 4},
    }
    (tmp_path / "document.json").write_text(json.dumps(document))
    arguments = ["--bundle", bundle_path, "--document", tmp_path / "document.json", "--out", tmp_path]
    assert run(*arguments, "--guidance", 2) == 0
    [answer] = json.loads((tmp_path / "result.json").read_text())["answers"]
    assert pixels(tmp_path / answer["segments"][0]["image"]).shape == (12, 12, 3)
    assert answer["finish"] in ("end", "text_limit") and answer["settings"]["guidance"] == 2
    texts = [segment["text"] for segment in answer["segments"][1:]]
    assert all(text in capsys.readouterr().out for text in texts[:1])


def test_a_stream_writes_the_same_files_and_prints_as_it_goes(bundle_path, tmp_path, capsys):
    arguments = ["--bundle", bundle_path, "--prompt", "a red sun", "--size", "2:1", "--think", 4, "--guidance", 2]
    arguments += ["--instruction", "think", "--guidance_drops", "all", "--guidance_scales", "2,3", "--seed", 3]
    assert run(*arguments, "--save_scales", "--out", tmp_path / "whole") == 0
    capsys.readouterr()
    assert run(*arguments, "--stream", "--out", tmp_path / "stream") == 0
    told = capsys.readouterr().out
    [whole], [streamed] = (
        json.loads((tmp_path / name / "result.json").read_text())["answers"] for name in ("whole", "stream")
    )
    [thought, picture] = whole["segments"]
    assert streamed["segments"] == [thought, {"image": "000.png", "scales": ["000_scale1.png", "000_scale2.png"]}]
    assert whole["document"] == ["think", "a red sun"] and whole["settings"]["guidance_drops"] == "all"
    assert thought["thought"] in told and "000_scale2.png (scale 2 of 3)" in told
    for name in ("000.png", "000_scale1.png", "000_scale2.png"):
        assert pixels(tmp_path / "whole" / name).shape == (8, 16, 3)
        assert np.array_equal(pixels(tmp_path / "whole" / name), pixels(tmp_path / "stream" / name))


def test_documents_keep_their_settings_unless_the_command_says_otherwise(bundle_path, tmp_path):
    for name, top_k in (("one", 3), ("two", 4)):
        content = {
            "segments": [{"text": "sun"}],
            "generate": {"max_images": 0, "max_text_tokens": 2},
            "settings": {"top_k": top_k, "text_top_k": 5},
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    documents = ["--document", tmp_path / "one.json", "--document", tmp_path / "two.json"]
    assert run("--bundle", bundle_path, *documents, "--text_top_k", 2, "--stream", "--out", tmp_path / "out") == 0
    answers = json.loads((tmp_path / "out" / "result.json").read_text())["answers"]
    assert [answer["settings"]["top_k"] for answer in answers] == [3, 4]
    assert [answer["settings"]["text_top_k"] for answer in answers] == [2, 2]


def spoiled(bundle_path, folder):
    copy = folder / "spoiled"
    copy.mkdir()
    for file in bundle_path.iterdir():
        (copy / file.name).write_bytes(file.read_bytes()[: 40 if file.name == DECODER_FILE else None])
    return copy


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", ""], "the prompt is empty"),
        (["--prompt", "sun and moon " * 40], "with an answer of at least 14 it exceeds the limit of 64 positions"),
        (["--prompt", "sun", "--size", "32x32"], "picture size 32x32 is not supported; this model knows 12x12, 8x16"),
        (["--prompt", "sun", "--size", "large"], "write HEIGHTxWIDTH"),
        (["--prompt", "sun", "--top_p", "1.5"], "settings.top_p = 1.5: must be in (0, 1]"),
        (["--prompt", "sun", "--num", "0"], "--num 0: must be at least 1"),
        (["--prompt", "sun", "--seed", "-3"], "seed -3"),
        (["--document", "nowhere.json"], "nowhere.json: no such file"),
        (["--prompt", "sun", "--size", "condition"], "the prompt has no picture"),
        (["--prompt", "sun", "--guidance_scales", "3,1"], "settings.guidance_scales = (3, 1)"),
        (["--prompt", "sun", "--max_cache_gib", "0.00001"], "the limit is 10,737"),
        (["--prompt", "sun", "--think", "-1"], "max_thought_tokens -1"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_status_1(bundle_path, tmp_path, capsys, arguments, message):
    assert run("--bundle", bundle_path, "--out", tmp_path / "out", *arguments) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_bad_bundle_or_folder_is_one_line_and_status_1(bundle_path, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    cases = [
        (["--bundle", tmp_path / "nowhere", "--out", tmp_path / "out"], "nowhere: no such folder"),
        (["--bundle", spoiled(bundle_path, tmp_path), "--out", tmp_path / "out"], "not a readable safetensors file"),
        (["--bundle", bundle_path, "--out", tmp_path / "file"], "is a file; give a folder"),
    ]
    for arguments, message in cases:
        assert run(*arguments, "--prompt", "sun") == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_misuse_is_status_2_and_help_explains(bundle_path, tmp_path, capsys):
    assert run("--bundle", bundle_path, "--out", tmp_path) == 2
    assert run("--bundle", bundle_path, "--out", tmp_path, "--prompt", "a", "--top_k", "many") == 2
    assert run("--bundle", bundle_path, "--out", tmp_path, "--prompt", "a", "--guidance_schedule", "square") == 2
    assert run("--help") == 0
    assert '"segments"' in capsys.readouterr().out
