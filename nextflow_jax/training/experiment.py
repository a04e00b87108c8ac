"""The experiments: one frozen dataclass a kind, with its cross-field rules, and the way there from a ConfigDict."""

import dataclasses
import operator
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

from nextflow_jax.bundle import read_vision_config
from nextflow_jax.config import Fault, choose, from_config_dict, preflight
from nextflow_jax.convert.qwen2_5_config import read_tower
from nextflow_jax.data.extraction import ExtractionConfig
from nextflow_jax.data.manifest import read_manifests, shard_directories
from nextflow_jax.data.pictures import PicturesConfig
from nextflow_jax.data.pipeline import PipelineConfig
from nextflow_jax.data.shards import TOKENIZER_DIRECTORY
from nextflow_jax.errors import UserError
from nextflow_jax.evals.config import EvaluationConfig, TokenizerEvaluationConfig
from nextflow_jax.models.decoder_config import DecoderConfig
from nextflow_jax.models.objective import ObjectiveConfig
from nextflow_jax.models.presets import decoder_preset
from nextflow_jax.text import TextTokenizer, TextTokenizerConfig, load_text_tokenizer
from nextflow_jax.training.checkpoint import checkpoint_steps, read_meta
from nextflow_jax.training.moved_ids import check_growth, check_same_beginning, moved_ids
from nextflow_jax.training.published_start import PublishedStart, load_published_start
from nextflow_jax.training.settings import Experiment
from nextflow_jax.training.warm_start import NEWEST, MovedEntries, WarmStart
from nextflow_jax.vision import lpips
from nextflow_jax.vision.adversarial import DISCRIMINATOR, AdversarialConfig
from nextflow_jax.vision.dual_encoder import DualEncoderConfig
from nextflow_jax.vision.losses import TokenizerLossConfig
from nextflow_jax.vision.tokenizer import VisionTokenizerConfig
from nextflow_jax.vocabulary import Vocabulary

MAY_BE_LARGER = ("max_scales", "vocabulary.text_size")
"""Sizes of the decoder that may be more than the shards need."""

FROM_SHARDS = 0
"""A size of the decoder that is taken from the shards: they know their tokenizers."""


@dataclasses.dataclass(frozen=True)
class ContrastiveExperiment(Experiment):
    """An image-text dual encoder on captioned pictures."""

    kind: str = "contrastive"
    pictures: PicturesConfig = PicturesConfig()
    text: TextTokenizerConfig = TextTokenizerConfig()
    model: DualEncoderConfig = DualEncoderConfig()

    FIXED: ClassVar = (*Experiment.FIXED, "model")
    FREE: ClassVar = ("model.dtype", "model.vit.transformer.remat", "model.text.remat")

    def faults(self) -> Iterator[Fault]:
        """The rules between groups that this experiment breaks."""
        yield from super().faults()
        patch = self.model.vit.patch
        if any(side % patch for side in self.pictures.size):
            near = tuple(max(patch, side // patch * patch) for side in self.pictures.size)
            rule = f"must be multiples of model.vit.patch = {patch}"
            yield Fault("pictures.size", self.pictures.size, rule, f"use {near}")

    def needs_whole_batch(self) -> str:
        """Its loss compares all pairs."""
        return "the contrastive loss compares every picture of the batch with every caption"


@dataclasses.dataclass(frozen=True)
class TokenizerExperiment(Experiment):
    """The vision tokenizer on pictures."""

    kind: str = "tokenizer"
    pictures: PicturesConfig = PicturesConfig()
    model: VisionTokenizerConfig = VisionTokenizerConfig()
    loss: TokenizerLossConfig = TokenizerLossConfig()
    lpips_vgg: str = ""
    """torchvision's VGG16 weights (e.g. vgg16-397923af.pth), a file; the term loss.lpips needs it."""
    lpips_linear: str = ""
    """The linear weights of the package lpips 0.1, its file for VGG; likewise."""
    adversarial: AdversarialConfig = AdversarialConfig()
    evaluation: TokenizerEvaluationConfig = TokenizerEvaluationConfig()
    teacher: str = ""
    """--workdir of a contrastive run; the newest checkpoint's vision tower is the frozen teacher."""
    init_from_teacher: bool = False
    """The semantic encoder starts as the teacher's vision tower."""
    mirror_share: float = 0.0
    """Share of the pictures that are shown left-right mirrored."""
    freeze_codebook: bool = False
    """The codebook stays as it is (its moving averages, too); what else stays is optimizer.freeze."""
    buckets: bool = False
    """Each picture is shown at the size in model.family.sizes whose ratio is nearest to its own, in batches of one size
    each; otherwise all are shown at pictures.size."""

    FIXED: ClassVar = (*Experiment.FIXED, "model")
    FREE: ClassVar = (
        "model.dtype",
        "model.vit.transformer.remat",
        "model.semantic_decoder.remat",
        "model.quantizer.decay",
        "model.quantizer.revive_after",
        "model.quantizer.scale_drop",
        "model.quantizer.dropped_scales",
        "model.quantizer.estimator",
        "model.quantizer.entropy_temperature",
    )

    def faults(self) -> Iterator[Fault]:
        """The rules between groups that this experiment breaks."""
        yield from super().faults()
        if self.pictures.size not in self.model.family.sizes:
            fix = f"use one of {self.model.family.sizes}, or add it to the family"
            yield Fault("pictures.size", self.pictures.size, "must be in model.family.sizes", fix)
        if not self.model.quantizer.dual:
            yield from self._single_codebook_faults()
        elif not self.teacher and (self.loss.needs_teacher or self.init_from_teacher):
            fix = "give the --workdir of a contrastive run, or set the loss's distillation weights to 0"
            yield Fault("teacher", self.teacher, "distillation and init_from_teacher need a teacher", fix)
        yield from self._codebook_faults()
        yield from self._judge_faults()
        if self.freeze_codebook and not self.init_from.workdir:
            fix = "set init_from.workdir to a trained tokenizer's run"
            yield Fault("freeze_codebook", True, "would freeze random codes", fix)
        if not 0 <= self.mirror_share <= 1:
            yield Fault("mirror_share", self.mirror_share, "is a share", "use a number from 0 to 1")

    def needs_whole_batch(self) -> str:
        """Whatever is kept from batch to batch, or is a property of one."""
        if not self.freeze_codebook:
            return "the codebook's statistics are kept from batch to batch, unless freeze_codebook"
        if self.adversarial.weight:
            return "adversarial training keeps statistics from batch to batch"
        if self.loss.entropy_batch:
            return "loss.entropy_batch is about the codes of the whole batch"
        return ""

    def _single_codebook_faults(self) -> Iterator[Fault]:
        """A single codebook has no semantic branch, so nothing that only such a branch can use."""
        rule = "a single codebook (model.quantizer.semantic_dim = 0) has no semantic branch"
        names = ("teacher", "init_from_teacher", "loss.distillation_cosine", "loss.distillation_l2")
        for name in names:
            value = operator.attrgetter(name)(self)
            if value:
                off = type(value)()
                yield Fault(name, value, rule, f"set it to {off!r}, or give the quantizer a semantic_dim")

    def _codebook_faults(self) -> Iterator[Fault]:
        """Terms of the loss and the codebook that each needs of the other."""
        quantizer, loss = self.model.quantizer, self.loss
        trained = quantizer.learned == "gradient"
        if trained and not loss.vq:
            rule = "model.quantizer.learned = 'gradient': nothing else trains the codes"
            yield Fault("loss.vq", loss.vq, rule, "set it to 1.0")
        if loss.vq and not trained:
            rule = f"model.quantizer.learned = {quantizer.learned!r}: codes are no parameters"
            yield Fault("loss.vq", loss.vq, rule, "set it to 0.0, or learned to 'gradient'")
        if (loss.entropy_sample or loss.entropy_batch) and not quantizer.entropy_temperature:
            rule = "loss.entropy_sample and loss.entropy_batch need the quantizer's entropies"
            yield Fault("model.quantizer.entropy_temperature", 0.0, rule, "set it to e.g. 0.01")

    def _judge_faults(self) -> Iterator[Fault]:
        """What the perceptual term and the discriminator need of files and pictures."""
        sizes = self.model.family.sizes if self.buckets else (self.pictures.size,)
        smallest = min(min(size) for size in sizes)
        judges = {
            "loss.lpips": (self.loss.lpips, lpips.SMALLEST_SIDE),
            "adversarial.weight": (self.adversarial.weight, self.adversarial.discriminator.smallest_side),
        }
        for name, (weight, side) in judges.items():
            if weight and smallest < side:
                rule = f"pictures have sides of {smallest} pixels, and it needs {side}"
                yield Fault(name, weight, rule, "use larger pictures, fewer discriminator layers, or 0.0")
        for name in ("lpips_vgg", "lpips_linear"):
            if self.loss.lpips and not getattr(self, name):
                fix = "give the weights' file, or set loss.lpips to 0.0"
                yield Fault(name, "", "the term loss.lpips needs published weights", fix)
        own_group = any(re.search(pattern, f"{DISCRIMINATOR}/") for pattern in self.optimizer.clip_groups)
        if self.adversarial.weight and self.optimizer.clip_norm and not own_group:
            rule = "the discriminator must be clipped apart from the tokenizer, or each shortens the other's steps"
            yield Fault("optimizer.clip_groups", self.optimizer.clip_groups, rule, f"use ('^{DISCRIMINATOR}/',)")

    def input_faults(self) -> Iterator[Fault]:
        """Runs and files that must be there and are not."""
        yield from super().input_faults()
        if self.teacher and not checkpoint_steps(self.teacher):
            yield Fault("teacher", self.teacher, "has no checkpoint", "train the contrastive experiment there first")
        for name in ("lpips_vgg", "lpips_linear"):
            path = getattr(self, name)
            if self.loss.lpips and path and not pathlib.Path(path).exists():
                yield Fault(name, path, "no such file", "download the weights, or set loss.lpips to 0.0")


@dataclasses.dataclass(frozen=True)
class DecoderExperiment(Experiment):
    """The unified transformer on shards. Sizes of `model` that are FROM_SHARDS are those of the shards' tokenizers."""

    kind: str = "decoder"
    pictures: PicturesConfig = PicturesConfig()
    extraction: ExtractionConfig = ExtractionConfig()
    pipeline: PipelineConfig = PipelineConfig()
    model: DecoderConfig = decoder_preset("small", Vocabulary(FROM_SHARDS, FROM_SHARDS), FROM_SHARDS, FROM_SHARDS)
    objective: ObjectiveConfig = ObjectiveConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    FIXED: ClassVar = (*Experiment.FIXED, "model")
    FREE: ClassVar = ("model.dtype", "model.remat", "model.scan_unroll", "model.attention")

    def device_faults(self, num_devices: int) -> Iterator[Fault]:
        """See `Experiment`; rows that the context axis does not divide."""
        yield from super().device_faults(num_devices)
        try:
            context = self.mesh.resolve(num_devices)["context"]
        except UserError:  # said above
            return
        length = self.pipeline.row_length
        if length % context:
            fix = f"use {-(-length // context) * context}"
            yield Fault("pipeline.row_length", length, f"must be a multiple of mesh.context = {context}", fix)

    def input_faults(self) -> Iterator[Fault]:
        """Shards that must be there and are not."""
        yield from super().input_faults()
        fix = "set it to the --out of python -m nextflow_jax.extract"
        if not self.pipeline.shards:
            yield Fault("pipeline.shards", "", "training needs shards", fix)
            return
        try:
            read_manifests(self.pipeline.shards)
        except UserError as error:
            yield Fault("pipeline.shards", self.pipeline.shards, str(error), fix)

    def with_input_sizes(self) -> "DecoderExperiment":
        """This experiment with the sizes of the shards' tokenizers; as many text ids as published weights have rows.

        Raises:
          UserError: a size of `model` that is set already differs from theirs; names all that do. Two may be larger:
            `max_scales`, for a stage of a chain has room for what later ones need, and `text_size`, for published
            tables are padded (152,064 rows for the 151,665 ids of Qwen2.5's tokenizer).
        """
        manifest = read_manifests(self.pipeline.shards)
        quantizer = read_vision_config(shard_directories(self.pipeline.shards)[0] / TOKENIZER_DIRECTORY).quantizer
        scales = manifest.schedule_family.max_scales + int(self.pipeline.last_scale_context)
        weights = self.init_from.weights
        text_size = read_tower(weights).text_size if weights else manifest.text_size
        known = (text_size, manifest.codebook_size, quantizer.dim, scales, quantizer.semantic_dim)
        differing = [
            f"config.model.{name} = {ours}: the shards have {theirs}"
            for (name, ours), theirs in zip(self.input_sizes().items(), known)
            if ours not in (FROM_SHARDS, theirs) and not (name in MAY_BE_LARGER and ours > theirs)
        ]
        if differing:
            raise UserError(f"{'; '.join(differing)}; {FROM_SHARDS} takes the shards' size")
        return self.with_sizes(*known)

    def load_start(self, abstract: Callable[[], Any]) -> WarmStart | PublishedStart | None:
        """See `Experiment`."""
        if not self.init_from.weights:
            return super().load_start(abstract)
        return load_published_start(self.init_from.weights, self.model, abstract(), self._text_tokenizer())

    def moved_entries(self) -> Mapping[str, MovedEntries]:
        """See `Experiment`: the source may have another number of text ids."""
        source = self.init_from
        config = read_meta(source.workdir, None if source.step == NEWEST else source.step)["config"]
        theirs = Vocabulary(**config["model"]["vocabulary"])
        moved = moved_ids(theirs, self.model)
        if any(source.grows(name) for name in moved):
            check_growth(theirs, self.model.vocabulary)
            folder = pathlib.Path(source.workdir) / TOKENIZER_DIRECTORY
            check_same_beginning(load_text_tokenizer(folder), self._text_tokenizer(), folder)
        return moved

    def _text_tokenizer(self) -> TextTokenizer:
        """Of the shards."""
        return load_text_tokenizer(shard_directories(self.pipeline.shards)[0] / TOKENIZER_DIRECTORY)

    def with_placeholder_sizes(self) -> "DecoderExperiment":
        """See `Experiment`."""
        return self.with_sizes(1, 1, 2, 1, 1)

    def with_sizes(
        self, text_size: int, codebook_size: int, code_dim: int, max_scales: int, semantic_dim: int
    ) -> "DecoderExperiment":
        """This experiment with every FROM_SHARDS size of `model` set to these; others stay.

        `semantic_dim` goes to a model that takes one half of the codes; others have no use for it.
        """
        known = (text_size, codebook_size, code_dim, max_scales, semantic_dim)
        sizes = {name: ours or value for (name, ours), value in zip(self.input_sizes().items(), known)}
        of_vocabulary = {name: sizes.pop(f"vocabulary.{name}") for name in ("text_size", "codebook_size")}
        vocabulary = dataclasses.replace(self.model.vocabulary, **of_vocabulary)
        model = dataclasses.replace(self.model, vocabulary=vocabulary, **sizes)
        return dataclasses.replace(self, model=model)

    def input_sizes(self) -> dict[str, int]:
        """The sizes of `model` that the shards know, FROM_SHARDS where the experiment leaves them to them."""
        vocabulary = self.model.vocabulary
        return {
            "vocabulary.text_size": vocabulary.text_size,
            "vocabulary.codebook_size": vocabulary.codebook_size,
            "code_dim": self.model.code_dim,
            "max_scales": self.model.max_scales,
            **({} if self.model.code_halves == "both" else {"semantic_dim": self.model.semantic_dim}),
        }


EXPERIMENTS: dict[str, type[Experiment]] = {
    "contrastive": ContrastiveExperiment,
    "tokenizer": TokenizerExperiment,
    "decoder": DecoderExperiment,
}
"""Kind -> experiment; `config.kind` chooses."""


def build_experiment(values: Any, saved: bool = False) -> Experiment:
    """The experiment dataclass of a ConfigDict, or of a run's config.json.

    Args:
      values: its fields.
      saved: they are a run's own, which an earlier version may have saved: fields it did not know have their defaults.

    Raises:
      UserError: an unknown kind, or keys that are unknown, missing or mistyped.
    """
    if "kind" not in values:
        raise UserError(f"config.kind is missing; known: {', '.join(EXPERIMENTS)}")
    return from_config_dict(choose("config.kind", values["kind"], EXPERIMENTS), values, fill=saved)


def prepare_experiment(values: Any, num_devices: int) -> Experiment:
    """The complete experiment of a ConfigDict, after its preflight: nothing is left to fail but the data itself.

    Args:
      values: what an experiment file's get_config returns.
      num_devices: over all processes.

    Raises:
      UserError: as `build_experiment`; or every broken rule, missing input and misfit with the devices, all at once.
    """
    experiment = build_experiment(values)
    missing = list(experiment.input_faults())
    complete = experiment.with_placeholder_sizes() if missing else experiment.with_input_sizes()
    preflight(complete, extra=[*_named(missing), *_named(experiment.device_faults(num_devices))])
    return complete


def _named(faults: Iterable[Fault]) -> list[Fault]:
    return [dataclasses.replace(fault, field=f"config.{fault.field}") for fault in faults]
