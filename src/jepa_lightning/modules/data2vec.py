"""data2vec: predict the averaged layers of a teacher that sees everything (Baevski et al., arXiv 2202.03555)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from jepa_lightning import batches
from jepa_lightning.checkpoints import Networks, encoder_configuration, load_networks, read_networks
from jepa_lightning.draws import Rng
from jepa_lightning.masking import BlockwiseMasking, SpanMasking
from jepa_lightning.masking.masks import skipping_gaps
from jepa_lightning.modules.data2vec_published import DATA2VEC
from jepa_lightning.modules.ijepa import pair
from jepa_lightning.modules.masked import MaskedJEPA
from jepa_lightning.modules.training import Teacher
from jepa_lightning.networks import BeitTransformer, gather_tokens
from jepa_lightning.networks.blocks import BlockOutput
from jepa_lightning.networks.norms import instance_norm
from jepa_lightning.schedules import linear, tri_stage
from jepa_lightning.step import Latents, Prediction, Tokens

LayerNorm = Literal["none", "layer", "instance"]


class Data2Vec(MaskedJEPA):
    """data2vec, for images, sound and text. The defaults are those of the published ViT-B/16.

    Context: all tokens, with a mask token for each that is hidden, encoded. Target: the mean of the last K layers of
    the teacher, which sees all of the observation, normalised. Condition: the place, which a mask token has. Against
    collapse: the teacher, and the norms of the targets.

    The encoder says what is observed. Images `[B, C, H, W]` are the default's (`BeitTransformer`), waves `[B, L, 1]`
    are those of a `WaveTransformer`, and words `[B, L]`, whole numbers, of a `WordTransformer` with a `mask_word`:
    `encoder={"class_path": "jepa_lightning.networks.WaveTransformer", "init_args": {…}}`. Of waves and words a batch
    may say by its field `valid` `[B, L]` which there are; what is not there is neither seen nor predicted. As published
    (`recipes/data2vec`):

    | | images | waves | words |
    |---|---|---|---|
    | `num_layers` | 6 | 8 | 10 |
    | `mlp_targets` | false | true | true |
    | `layer_norm`, `target_norm` | none, true | instance, false | layer, false |
    | `beta`, `loss_scale` | 2, 1/√D | 0, 1/√D | 4, 1 |
    | `head_layers` | 1 | 1 | 2 |
    | `mask_ratio`, `mask_length` | 0.6, 16 | 0.49, 10 | 0.3, 4 |
    | `momentum` | 0.999 to 0.9998 | 0.999 to 0.9999 in 30,000 steps | the same in 300,000 |

    What makes tokens of observations, convolutions that tell positions included, the teacher has from the student.

    Some ways of the official code are not here: fairseq's variant for images never applies its head; a batch hides as
    many tokens of each sample as it does of the one that hides the fewest; padding counts in the norms of targets. The
    published runs used fairseq's Adam, whose epsilon is not divided by the root of the second moment's bias correction
    as torch's is, and which decays biases and norms, too. They had dropout, layer drop or stochastic depth, which these
    encoders have not.

    Args:
        image_size: side in pixels, or `[rows, columns]`.
        patch_size: side of a patch in pixels, or `[rows, columns]`; divides the image size.
        in_channels: number of image channels.
        embed_dim: width D of the encoder's tokens.
        depth: blocks of the encoder.
        num_heads: attention heads of the encoder.
        mlp_ratio: width of the encoder's MLPs over `embed_dim`.
        num_layers: K, the last layers of which targets are the mean.
        mlp_targets: whether a layer is what its MLP adds, and not what its block gives.
        layer_norm: norm of each layer before the mean: over the features of a token (`layer`), over the tokens of an
            observation (`instance`), or `none`.
        target_norm: whether the mean is layer-normed.
        beta: where smooth L1 turns from squares to differences; 0 for the squared error.
        loss_scale: what the sum of a token's distances over the features is multiplied by; 1/√D without.
        head_layers: linear maps from the encoder's tokens to predictions: none, one, or two with GELU between.
        mask_ratio: share of the tokens that is hidden, and predicted.
        mask_length: tokens that are hidden in a row (see `SpanMasking`) or, of images, in a block at least (see
            `BlockwiseMasking`).
        momentum: momentum of the target encoder at the start and at the end, along a line.
        momentum_steps: steps to the end of that line, after which it is constant; those of the training without.
        hold: share of the training that the learning rate stays at its peak after the warm-up; then it falls
            exponentially, as published for waves. Along half a cosine from the peak on without.
        official: let padding count in the norms of targets, as in the official code.
        **options: those of `MaskedJEPA`: another encoder, regularisers, learning rate, weights to start from.

    Raises:
        ValueError: a value out of its range, or an encoder without mask tokens.

    Source: data2vec (arXiv 2202.03555), sections 3 and 4.
    """

    encoder_sizes: tuple[str, ...] = ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")
    shared: tuple[str, ...] = ("patch_embed", "conv_positions")  # parts of the encoder that the teacher has from it
    published = DATA2VEC
    masks_tokens = True  # whether the encoder needs a mask token, or must not have one
    any_size = True

    def __init__(
        self,
        image_size: int | list[int] = 224,
        patch_size: int | list[int] = 16,
        in_channels: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        num_layers: int = 6,
        mlp_targets: bool = False,
        layer_norm: LayerNorm = "none",
        target_norm: bool = True,
        beta: float = 2.0,
        loss_scale: float | None = None,
        head_layers: int = 1,
        mask_ratio: float = 0.6,
        mask_length: int = 16,
        momentum: tuple[float, float] = (0.999, 0.9998),
        momentum_steps: int | None = None,
        hold: float | None = None,
        official: bool = False,
        **options: Any,
    ) -> None:
        if layer_norm not in get_args(LayerNorm):
            raise ValueError(f"layer_norm must be one of {', '.join(get_args(LayerNorm))}, got {layer_norm!r}")
        if head_layers not in (0, 1, 2):
            raise ValueError(f"a head has none, one or two layers, got head_layers={head_layers}")
        if beta < 0 or (loss_scale is not None and loss_scale <= 0):
            raise ValueError(f"beta must not be negative, and loss_scale be positive, got {beta} and {loss_scale}")
        if momentum_steps is not None and momentum_steps < 1:
            raise ValueError(f"momentum_steps must be at least 1, got {momentum_steps}")
        if hold is not None and not 0 <= hold < 1:
            raise ValueError(f"hold is the share of the training in [0, 1), got {hold}")
        super().__init__(momentum=momentum, **options)
        blocks, tokenizer = len(self.context_encoder.blocks), self.context_encoder.patch_embed
        mask_token, mask_word = (getattr(tokenizer, name, None) for name in ("mask_token", "mask_word"))
        encoder = type(self.context_encoder).__name__
        if self.masks_tokens and mask_token is None and mask_word is None:
            raise ValueError(
                f"this {encoder} has no mask token: give it mask_token=True, or a mask_word, or another one"
            )
        if not self.masks_tokens and mask_token is not None:
            raise ValueError(f"this {encoder} has a mask token that nothing would train: give mask_token=False")
        if not 1 <= num_layers <= blocks:
            raise ValueError(f"num_layers must be between 1 and the {blocks} blocks of the encoder, got {num_layers}")

    def example(self) -> Tensor:
        """An observation of the encoder's."""
        if not hasattr(self.context_encoder, "example"):
            raise ValueError(
                f"{type(self.context_encoder).__name__} is no encoder for {type(self).__name__}: give a transformer "
                "that says by example() what it is built for, as BeitTransformer, WaveTransformer and WordTransformer"
            )
        observation: Tensor = self.context_encoder.example()
        return observation

    def build_encoder(self) -> nn.Module:
        """The vision transformer f of BEiT."""
        hparams = self.hparams
        return BeitTransformer(
            pair(hparams.image_size),
            pair(hparams.patch_size),
            hparams.in_channels,
            hparams.embed_dim,
            hparams.depth,
            hparams.num_heads,
            hparams.mlp_ratio,
        )

    def build_predictor(self) -> nn.Module:
        """The head g, of each token by itself."""
        width, layers = self.context_encoder.embed_dim, self.hparams.head_layers
        if layers < 2:
            return nn.Linear(width, width) if layers else nn.Identity()
        return nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def build_masking(self) -> BlockwiseMasking | SpanMasking:
        """Blocks of images, spans of sequences."""
        masking = BlockwiseMasking if len(self.grid) == 2 else SpanMasking
        return masking(self.hparams.mask_ratio, self.hparams.mask_length)

    def teachers(self) -> list[Teacher]:
        """The target encoder follows the context encoder, part by part; what they share is only copied."""
        encoder = getattr(self.context_encoder, "_orig_mod", self.context_encoder)  # what a compiled one was made of
        return [
            Teacher(f"context_encoder.{name}", f"target_encoder.{name}", copied if shared else self.momentum)
            for name, part in encoder.named_children()
            if any(True for _ in part.parameters())
            for shared in (name in self.shared,)
        ]

    def momentum(self, step: int, total: int) -> float:
        """τ of a step, counted from zero; the official code counts them from one."""
        return linear(step + 1, self.hparams.momentum_steps or self.stretch * total, *self.hparams.momentum)

    def learning_rate(self, step: int, total: int) -> float:
        """The learning rate of a step, counted from one."""
        hparams = self.hparams
        if hparams.hold is None:
            return super().learning_rate(step, total)
        warmup, hold = hparams.warmup * total, hparams.hold * total
        return tri_stage(step, self.stretch * total, warmup, hold, hparams.start_lr, hparams.lr, hparams.final_lr)

    def observations(self, batch: Any) -> tuple[Any, ...]:
        """What is observed; waves are zero at steps that are not there."""
        (observation,) = batches.observations(batch, self.reads)
        if observation.ndim != 3:
            return (observation,)
        valid = batches.valid(batch, observation.shape[:2])
        return (observation if valid is None else observation.masked_fill(~valid.unsqueeze(-1), 0.0),)

    def valid(self, batch: Any) -> Tensor | None:
        """Which tokens there are of waves and words."""
        (observation,) = batches.observations(batch, self.reads)
        valid = batches.valid(batch, observation.shape[:2]) if observation.ndim < 4 else None
        return None if valid is None else self.context_encoder.patch_embed.valid(valid)

    def draw(self, batch: Any, rng: Rng) -> Any:
        """The masks; those of a sequence with gaps are drawn as if it had none, and skip them."""
        masks, valid = super().draw(batch, rng), self.valid(batch)
        return masks if valid is None else skipping_gaps(masks, valid)

    def latents(self, batch: Any, drawn: Any = None) -> Latents:
        """Encode the whole for the targets, and what is not hidden among mask tokens, and predict.

        Args:
            batch: with images, waves or words, as the encoder takes them.
            drawn: the masks, of one set of targets; drawn if not given.

        Raises:
            ValueError: observations that the encoder does not take.
        """
        (observation,), valid = self.observations(batch), self.valid(batch)
        grid = self.grid_of(observation)
        if drawn is None:
            drawn = self.draw(batch, Rng.fresh(len(observation), observation.device))
        targets = drawn.targets.to(observation.device)
        tokens = self.context_encoder.tokens(observation)
        hidden = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        hidden = hidden.scatter(1, targets.flatten(1), True)
        context = self.context_encoder.encode(self.context_encoder.masked(tokens, hidden), None, valid, grid)
        features, of_teacher = self.teach(observation, tokens, valid, grid)
        prediction = self.predictor(gather_tokens(context.values, targets))
        weight = None if valid is None else gather_tokens(valid.unsqueeze(-1), targets).squeeze(-1).float()
        predictions = {"": Prediction(prediction, gather_tokens(of_teacher, targets), weight)}
        return Latents(predictions, {"context": context, "target": features}, features)

    @torch.no_grad()
    def teach(
        self, observation: Tensor, tokens: Tensor, valid: Tensor | None, grid: Sequence[int]
    ) -> tuple[Tokens, Tensor]:
        """The teacher's tokens of the whole observation, and the targets `[B, N, D]` at each place.

        Args:
            observation: what is observed.
            tokens: what the student's tokenizer makes of it.
            valid: BoolTensor `[B, N]`, which tokens there are; all without.
            grid: that of the tokens.
        """
        # Where tokenizers are alike, that of waves, which costs as much as some blocks, need not read them once more.
        once = "patch_embed" in self.shared and observation.ndim == 3
        tokens = tokens.detach() if once else self.target_encoder.tokens(observation)
        features, outputs = self.target_encoder.outputs(tokens, None, valid, grid)
        features = features._replace(summary=None)  # a class token that nothing was asked of
        return features, self.average(outputs[-self.hparams.num_layers :], valid)

    def average(self, outputs: Sequence[BlockOutput], valid: Tensor | None) -> Tensor:
        """The mean of normalised layers `[B, N, D]`, normalised if asked for."""
        hparams, counted = self.hparams, None if self.hparams.official else valid
        layers = [(each.added if hparams.mlp_targets else each.tokens).float() for each in outputs]
        if hparams.layer_norm == "layer":
            layers = [F.layer_norm(layer, layer.shape[-1:]) for layer in layers]
        elif hparams.layer_norm == "instance":
            layers = [instance_norm(layer, counted) for layer in layers]
        mean = torch.stack(layers).mean(0)
        return F.layer_norm(mean, mean.shape[-1:]) if hparams.target_norm else mean

    def distances(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The sum of squared errors or smooth L1 over the features, times the scale."""
        beta, scale = self.hparams.beta, self.hparams.loss_scale or prediction.shape[-1] ** -0.5
        prediction, target = prediction.float(), target.float()
        if not beta:
            return F.mse_loss(prediction, target, reduction="none").sum(-1) * scale
        return F.smooth_l1_loss(prediction, target, reduction="none", beta=beta).sum(-1) * scale

    @classmethod
    def from_official(
        cls,
        path: str,
        num_heads: int | None = None,
        image_size: int | list[int] | None = None,
        strides: list[int] | None = None,
        mask_word: int | None = None,
        **options: Any,
    ) -> Self:
        """A module of the sizes and weights (encoder, predictor, teacher) of an official checkpoint, to train on with.

        How targets and losses are computed no file tells: that is as published for what the file observes.

        Args:
            path: a file of fairseq's (`model`).
            num_heads: attention heads of the encoder, asked for only where the width is none of the published ones.
            image_size: another size than the square one that the checkpoint's positions tell.
            strides: of the convolutions of a wave's front end; 5 of the first and 2 of others, as published, without.
            mask_word: the number of the word that stands for hidden ones; the last one, as published, without.
            **options: everything else that the module takes.

        Raises:
            ValueError: a file that is not such a checkpoint, or sizes that its shapes cannot tell.
        """
        networks = read_networks(path)
        observed = cls.kind_of_file(networks, path)
        state, further = networks.states["context_encoder"], {"eps": networks.options["epsilon"]}
        if observed == "words":
            words = len(state["patch_embed.words.weight"])
            further |= {"pad_word": 1, "mask_word": words - 1 if mask_word is None else mask_word}
        encoder = encoder_configuration(state, num_heads, image_size, strides, **further)
        module = cls(encoder=encoder, **cls.published[observed] | options)
        load_networks(module, networks)
        return module

    @classmethod
    def kind_of_file(cls, networks: Networks, path: str) -> str:
        """What a file of this method observes: a key of `published`.

        Raises:
            ValueError: a file of another method.
        """
        kind = networks.options.get("data2vec")
        if kind not in cls.published:
            found = f"of data2vec for {kind}" if kind else "of another method"
            raise ValueError(f"{path} is {found}, and {cls.__name__} loads those for {', '.join(cls.published)}")
        return str(kind)


def copied(step: int, total: int) -> float:
    """The momentum of what a teacher has from its student."""
    return 0.0
