"""Ingest of your own files: a variant for every form in which collections of pictures and texts are usually shared.

Reproduces: nothing of the paper; it says how well-known files are read, column by column.
Command:

    python -m nextflow_jax.data.ingest --config experiments/data/files.py:jsonl --out runs/corpus \\
        --config.sources.0.paths="('my/*.jsonl',)" --config.sources.0.task=text_to_image

Variants:

    jsonl         {"image": "cats/1.jpg", "text": "a cat"}, pictures by path or URL
    webdataset    tar archives of 7.jpg and 7.txt, as img2dataset writes them with output_format=webdataset
    img2dataset   its Parquet: columns key, caption, jpg (bytes); rows that it could not download have no picture
    laion         lists of URLs: columns TEXT, URL, LICENSE; most of those pictures are gone, and each costs a request
    omnicorpus    Parquet of `texts` and `images`, lists of one length of which each place is null in one of them
    huggingface   Parquet of the `datasets` library: columns text and image, a struct {bytes, path}
    llava         JSON of conversations with <image> in their turns; set image_root
    tfds          a data set built as ArrayRecord files; columns name its features
    video         folders of frames or video files, a text file of the same name beside each as its caption
    frames        JSON Lines of {"frames": [paths], "fps": 2, "text": ...}

Other names of columns: `--config.sources.0.columns="(('text', 'alt'), ('image', 'picture'))"`.
Cost: that of reading the files and decoding each picture once.
Result: a corpus, and in its corpus.json how many documents were read, kept, and left out for which reason.
"""

from nextflow_jax.config import read_variant, to_config_dict
from nextflow_jax.data.ingest.config import IngestConfig, SourceConfig

VARIANTS = (
    "webdataset", "img2dataset", "laion", "omnicorpus", "huggingface", "llava", "tfds", "video", "frames", "jsonl",
)  # fmt: skip

_FOLDER = "data/files"
_PARQUET = (f"{_FOLDER}/*.parquet",)
_SOURCES = (
    SourceConfig("jsonl", "jsonl", (f"{_FOLDER}/*.jsonl",)),
    SourceConfig("webdataset", "webdataset", (f"{_FOLDER}/*.tar",)),
    SourceConfig("img2dataset", "parquet", _PARQUET, columns=(("id", "key"), ("text", "caption"), ("image", "jpg"))),
    SourceConfig(
        "laion",
        "parquet",
        _PARQUET,
        columns=(("text", "TEXT"), ("image", "URL"), ("licence", "LICENSE")),
        url_schemes=("https", "http"),
    ),
    SourceConfig("omnicorpus", "parquet", _PARQUET, url_schemes=("https", "http")),
    SourceConfig("huggingface", "parquet", _PARQUET),
    SourceConfig("llava", "llava", (f"{_FOLDER}/*.json",)),
    SourceConfig("tfds", "tfds", (f"{_FOLDER}/1.0.0",)),
    SourceConfig("video", "video", (f"{_FOLDER}/videos",)),
    SourceConfig("frames", "video", (f"{_FOLDER}/*.jsonl",)),
)


def get_config(variant: str = ""):
    """The ingest of one form."""
    kind, _ = read_variant(variant, VARIANTS, switches=())
    return to_config_dict(IngestConfig(sources=tuple(source for source in _SOURCES if source.name == kind)))
