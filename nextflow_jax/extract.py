"""`python -m nextflow_jax.extract`: turns pictures and their documents into shards of indices for decoder training."""

import dataclasses
import pathlib
import sys
from collections.abc import Sequence

import jax
import numpy as np
import tqdm

from nextflow_jax import command, compile_cache
from nextflow_jax.bundle import is_bundle, load_bundle
from nextflow_jax.config import load_experiment, preflight
from nextflow_jax.data.corpus.reader import open_corpus
from nextflow_jax.data.document_sources import make_documents
from nextflow_jax.data.documents import Document, with_pictures_at_most
from nextflow_jax.data.extraction import Extracted, ExtractionConfig, extract
from nextflow_jax.data.extraction_check import check_extraction
from nextflow_jax.data.extraction_corpus import CorpusDocuments
from nextflow_jax.data.extraction_pictures import PictureSetSource
from nextflow_jax.data.extraction_source import ExtractionSource
from nextflow_jax.data.pictures import CORPUS, SPLITS, PictureSet, open_pictures
from nextflow_jax.data.shards import TOKENIZER_DIRECTORY
from nextflow_jax.errors import UserError, run_entry_point
from nextflow_jax.export import codec_of_run
from nextflow_jax.scales import ScheduleFamily
from nextflow_jax.text import make_text_tokenizer
from nextflow_jax.training.checkpoint import restore_variables
from nextflow_jax.training.experiment import DecoderExperiment, build_experiment
from nextflow_jax.vision.codec import VisionTokenizerCodec

DESCRIPTION = """\
Writes the documents of a decoder experiment as shards: texts tokenized, pictures encoded by the vision tokenizer, with
self-correction draws for training. OUT gets the shards, index/, manifest.json and tokenizer/ (a bundle of both
tokenizers). Running the same command again continues an interrupted extraction; a finished one is left as it is.

Documents come from the experiment's pictures, or from a corpus that nextflow_jax.data.ingest made:
--config.pictures.name=corpus --config.pictures.root=CORPUS. Several machines that share OUT take --process 0 ... N-1 of
--processes N; the last one finishes. --verify N extracts N documents of a finished OUT again and compares."""

_LINES = 10
"""Progress lines where there is no terminal."""


def main(arguments: Sequence[str]) -> None:
    """Checks everything, then extracts; see --help."""
    parser = command.command_parser(
        "extract",
        DESCRIPTION,
        example="--config experiments/openmoji/quickstart.py:decoder --tokenizer runs/quickstart/tokenizer "
        "--out runs/quickstart/shards",
    )
    command.add_config_flag(parser)
    parser.add_argument(
        "--tokenizer", required=True, metavar="DIR_OR_BUNDLE", help="--workdir of a tokenizer run, or a bundle"
    )
    parser.add_argument(
        "--out", required=True, type=command.folder, metavar="DIR", help="the shards' folder; made when it is not there"
    )
    parser.add_argument("--process", type=int, default=0, metavar="I", help="number of this machine (%(default)s)")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="machines in all (%(default)s)")
    parser.add_argument("--verify", type=int, default=0, metavar="N", help="compare about N documents, write nothing")
    options, overrides = command.parse(parser, arguments)
    compile_cache.enable()
    experiment = _experiment(options.config, overrides)
    codec = _load_codec(options.tokenizer, experiment.extraction)
    source = open_source(experiment, codec.family)
    if options.verify:
        print(_verify(experiment, source, codec, options.out, options.verify))
        return
    with _Progress() as progress:
        extracted = extract(
            experiment.extraction,
            source,
            codec,
            make_text_tokenizer(experiment.extraction.text, source.texts()),
            options.out,
            seed=experiment.seed,
            process=options.process,
            processes=options.processes,
            progress=progress.show,
        )
    print(summarise(options.out, extracted))


def open_source(experiment: DecoderExperiment, family: ScheduleFamily) -> ExtractionSource:
    """The documents that the experiment describes: of a corpus, or those that a data set of pictures makes.

    Raises:
      UserError: what opening them raises, or a picture size that is none of the family's.
    """
    config, pictures = experiment.extraction, experiment.pictures
    if pictures.name == CORPUS:
        return CorpusDocuments(open_corpus(pictures.root), pictures, config.tasks, config.max_images, config.batch_size)
    family.schedule(pictures.size)
    opened = open_pictures(pictures).without_broken()
    return PictureSetSource(opened, make_all_documents(opened, config, experiment.seed), config.batch_size)


def _verify(
    experiment: DecoderExperiment,
    source: ExtractionSource,
    codec: VisionTokenizerCodec,
    out: pathlib.Path,
    documents: int,
) -> str:
    text_tokenizer = load_bundle(pathlib.Path(out) / TOKENIZER_DIRECTORY).text_tokenizer
    config, seed = experiment.extraction, experiment.seed
    checked = check_extraction(config, source, codec, text_tokenizer, out, seed=seed, documents=documents)
    return f"{out}: verified {checked:,} documents, 0 differ"


def make_all_documents(pictures: PictureSet, config: ExtractionConfig, seed: int) -> dict[str, list[Document]]:
    """The documents of every split that the data set's pictures make, of the tasks and lengths that are asked for."""
    documents = {split: make_documents(pictures, split, config.tasks, seed) for split in SPLITS}
    if not config.max_images:
        return documents

    def cut(made: Sequence[Document]) -> list[Document]:
        shorter = (with_pictures_at_most(document, config.max_images) for document in made)
        return [document for document in shorter if document is not None]

    return {split: cut(made) for split, made in documents.items()}


def summarise(out: str | pathlib.Path, extracted: Extracted) -> str:
    """What was written, in two or three lines."""
    lines = _speeds(extracted)
    if extracted.manifest is None:
        waiting = (
            f"{out}: this machine's shards are done; {extracted.waiting_for:,} parts of other machines are missing"
        )
        return "\n".join([waiting, *lines])
    splits = extracted.manifest.splits
    size = sum(shard.bytes for split in splits for shard in split.shards)
    tokens = sum(shard.tokens for split in splits for shard in split.shards)
    parts = ", ".join(
        f"{split.name} {split.records:,}" + (f" ({split.documents:,} x {split.draws} draws)" if split.draws > 1 else "")
        for split in splits
    )
    return "\n".join(
        [
            f"{out}: {'was finished already' if extracted.finished_before else 'finished'}",
            f"documents: {parts}; {tokens:,} tokens in {size / 1e6:,.1f} MB, {size / max(tokens, 1):.2f} bytes a token",
            *(
                f"left out: {count:,} of {split.name}: {reason}"
                for split in splits
                for reason, count in split.lost.items()
            ),
            *lines,
        ]
    )


def _speeds(extracted: Extracted) -> list[str]:
    tallies = extracted.tallies
    images, seconds = (sum(getattr(tally, name) for tally in tallies.values()) for name in ("images", "seconds"))
    if not images:
        return []
    lines = [f"pictures encoded: {images:,} in {seconds:,.1f} s, {images / seconds:,.0f} images/s with compiling"]
    for (height, width), tally in sorted(tallies.items()):
        later = f"{tally.speed:,.0f} images/s after the first batch" if tally.speed else "one batch"
        lines.append(f"  {height}x{width}: {tally.images:,}, {later}")
    return lines


def _experiment(spec: str, overrides: Sequence[str]) -> DecoderExperiment:
    experiment = build_experiment(load_experiment(spec, overrides))
    if not isinstance(experiment, DecoderExperiment):
        raise UserError(
            f"config.kind = {experiment.kind!r}: only a decoder experiment says what to extract; "
            f"give its variant, e.g. --config {spec.partition(':')[0]}:decoder"
        )
    preflight(experiment.with_placeholder_sizes())
    return experiment


def _load_codec(tokenizer: str, config: ExtractionConfig) -> VisionTokenizerCodec:
    """The vision tokenizer of a run or a bundle, with the schedules and the batch size of the extraction."""
    path = pathlib.Path(tokenizer)
    if not path.is_dir():
        raise UserError(f"--tokenizer {tokenizer}: no such folder; give the --workdir of a tokenizer run, or a bundle")
    codec = load_bundle(path).codec if is_bundle(path) else codec_of_run(restore_variables(path))
    of_level = dataclasses.replace(codec.config, family=config.family(codec.family))
    mesh = jax.sharding.Mesh(np.asarray(jax.local_devices()), ("data",))
    return VisionTokenizerCodec(of_level, codec.variables, chunk=config.batch_size, mesh=mesh)


@dataclasses.dataclass
class _Progress:
    """A bar on a terminal, a line for every tenth elsewhere."""

    bar: tqdm.tqdm | None = None
    shown: int = 0

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def show(self, done: int, total: int) -> None:
        """Told after every record."""
        if sys.stderr.isatty():
            if self.bar is None:
                self.bar = tqdm.tqdm(total=total, desc="extract", unit="record", dynamic_ncols=True)
            self.bar.update(done - self.bar.n)
        elif done * _LINES // total > self.shown:
            self.shown = done * _LINES // total
            print(f"extract: {done:,} of {total:,} records", file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_entry_point(main)
