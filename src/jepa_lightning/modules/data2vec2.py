"""data2vec 2.0: many masks for each pass of the teacher, and a light decoder (Baevski et al., arXiv 2212.07525)."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn
from typing_extensions import Self

from jepa_lightning.checkpoints import encoder_configuration, load_networks, read_networks
from jepa_lightning.checkpoints.data2vec_sizes import decoder_sizes
from jepa_lightning.draws import Rng
from jepa_lightning.masking import InverseBlockMasking, Masks, SpanMasking
from jepa_lightning.masking.masks import skipping_gaps
from jepa_lightning.modules.data2vec import Data2Vec, LayerNorm
from jepa_lightning.modules.data2vec_published import DATA2VEC2
from jepa_lightning.modules.ijepa import pair
from jepa_lightning.modules.training import Teacher
from jepa_lightning.networks import ConvDecoder, PostNormVisionTransformer, gather_tokens
from jepa_lightning.step import Latents, Prediction, Tokens


class Clones(NamedTuple):
    """What a step draws: of each sample M clones, each with a mask of its own.

    Attributes:
        context: LongTensor `[B, M, K_c]`, the places that each sees.
        targets: LongTensor `[B, M, K_t]`, the others, which it predicts.
        noise: `[B, M, K_t, D]`, what the decoder is given at these.
    """

    context: Tensor
    targets: Tensor
    noise: Tensor


class Data2Vec2(Data2Vec):
    """data2vec 2.0, for images, sound and text. The defaults are those of the published ViT-B/16.

    Context: the visible tokens of each of M clones of a sample, which hide other places, encoded. Target: that of
    `Data2Vec`, computed once for all clones. Condition: the places, where the decoder's convolutions find noise. Of
    images the class token of each clone predicts the mean target, too. Against collapse: the teacher, and the norms of
    the targets.

    The encoder says what is observed, as of `Data2Vec`; it needs no mask token. As published (`recipes/data2vec2`):

    | | images | waves | words |
    |---|---|---|---|
    | `num_masks` | 16 | 8 | 8 |
    | `mask_ratio`, `mask_length` | 0.8, 3 | 0.39, 5 | 0.48, 1 |
    | `num_layers` | 10 | 8 | 12 |
    | `target_norm` | true | false | false |
    | `loss_scale` | 1/√D | 1/√D | 1 |
    | `predictor_embed_dim`, `predictor_depth` | 768, 6 | 384, 4 | 768, 5 |
    | `predictor_kernel_size`, `predictor_groups` | 3, 16 | 7, 16 | 9, 1 |
    | `predictor_residual`, `head_layers` | true, 1 | true, 1 | false, 2 |
    | `ema_tokenizer` | true | false | false |
    | `cls_weight` | 2.56 | 0 | 0 |
    | `momentum`, to 0.99999 | from 0.9998 | from 0.999 | from 0.9999 |
    | `momentum_steps` | 100,000 | 75,000 | 100,000 |

    The official code adds up the class tokens' distances over all clones on a GPU, with a weight of 0.01, so that they
    count more in larger batches; here they are averaged, and the weight is that of the 256 clones of published runs.
    There padding is a word like others, hidden and predicted, and counts in the norms of targets. Of sound the share
    that is hidden is the one that spans of 50 % hide when they overlap. Dropout is not here, and fairseq's Adam is not
    torch's (see `Data2Vec`).

    Args:
        num_masks: clones of a sample, M.
        mask_ratio: share of the tokens that is hidden, and predicted.
        mask_length: tokens that are hidden in a row (see `SpanMasking`) or, of images, the side of blocks that are kept
            (see `InverseBlockMasking`).
        mask_adjust: of images, the share that blocks may keep beyond, since they overlap.
        num_layers: K, the last layers of which targets are the mean.
        mlp_targets: whether a layer is what its MLP adds, and not what its block gives.
        layer_norm: norm of each layer before the mean, see `Data2Vec`.
        beta: where smooth L1 turns from squares to differences; 0 for the squared error.
        predictor_embed_dim: width of the decoder.
        predictor_depth: convolutions of the decoder.
        predictor_kernel_size: tokens that one sees, along each axis.
        predictor_groups: groups of its channels.
        predictor_residual: whether its input is added to what it gives.
        head_layers: linear maps at the end of the decoder, one or two.
        noise_std: standard deviation of the noise at hidden places.
        cls_weight: weight of the class token's distance beside that of the tokens; 0 of encoders without one.
        ema_tokenizer: whether the teacher's tokenizer follows the student's, too, and is not its copy.
        momentum: momentum of the target encoder at the start and at the end, along a line.
        momentum_steps: steps to the end of that line, after which it is constant; those of the training without.
        official: let padding count as in the official code.
        **options: those of `Data2Vec`.

    Raises:
        ValueError: a value out of its range, or one that does not fit the encoder.

    Source: data2vec 2.0 (arXiv 2212.07525), sections 3 and 4.
    """

    published = DATA2VEC2
    masks_tokens = False

    def __init__(
        self,
        num_masks: int = 16,
        mask_ratio: float = 0.8,
        mask_length: int = 3,
        mask_adjust: float = 0.07,
        num_layers: int = 10,
        mlp_targets: bool = True,
        layer_norm: LayerNorm = "instance",
        beta: float = 0.0,
        predictor_embed_dim: int = 768,
        predictor_depth: int = 6,
        predictor_kernel_size: int = 3,
        predictor_groups: int = 16,
        predictor_residual: bool = True,
        head_layers: int = 1,
        noise_std: float = 0.01,
        cls_weight: float = 2.56,
        ema_tokenizer: bool = True,
        momentum: tuple[float, float] = (0.9998, 0.99999),
        momentum_steps: int | None = 100_000,
        official: bool = False,
        **options: Any,
    ) -> None:
        if num_masks < 1:
            raise ValueError(f"num_masks must be at least 1, got {num_masks}")
        if noise_std < 0 or cls_weight < 0:
            raise ValueError(f"noise_std and cls_weight must not be negative, got {noise_std} and {cls_weight}")
        self.shared = () if ema_tokenizer else ("patch_embed",)
        super().__init__(
            mask_ratio=mask_ratio,
            mask_length=mask_length,
            num_layers=num_layers,
            mlp_targets=mlp_targets,
            layer_norm=layer_norm,
            beta=beta,
            head_layers=head_layers,
            momentum=momentum,
            momentum_steps=momentum_steps,
            official=official,
            **options,
        )
        encoder = self.context_encoder
        if cls_weight and encoder.class_token is None:
            raise ValueError(f"{type(encoder).__name__} has no class token to train: give cls_weight=0")
        if self.shared and any(parameter.requires_grad for parameter in encoder.parameters(recurse=False)):
            raise ValueError(f"the teacher of a {type(encoder).__name__} follows all of it: give ema_tokenizer=True")

    def build_encoder(self) -> nn.Module:
        """The vision transformer f, with a class token."""
        hparams = self.hparams
        return PostNormVisionTransformer(
            pair(hparams.image_size),
            pair(hparams.patch_size),
            hparams.in_channels,
            hparams.embed_dim,
            hparams.depth,
            hparams.num_heads,
            hparams.mlp_ratio,
        )

    def build_predictor(self) -> nn.Module:
        """The convolutional decoder g."""
        hparams = self.hparams
        return ConvDecoder(
            len(self.grid),
            self.context_encoder.embed_dim,
            hparams.predictor_embed_dim,
            hparams.predictor_depth,
            hparams.predictor_kernel_size,
            hparams.predictor_groups,
            hparams.predictor_residual,
            hparams.head_layers,
        )

    def build_masking(self) -> Any:
        """Inverse blocks of images, spans of sequences."""
        hparams = self.hparams
        if len(self.grid) == 2:
            return InverseBlockMasking(hparams.mask_ratio, hparams.mask_length, hparams.mask_adjust)
        return SpanMasking(hparams.mask_ratio, hparams.mask_length)

    def teachers(self) -> list[Teacher]:
        """The target encoder follows the context encoder, whole or part by part."""
        if not self.shared:
            return [Teacher("context_encoder", "target_encoder", self.momentum)]
        return super().teachers()

    def draw(self, batch: Any, rng: Rng) -> Clones:
        """The masks of all clones, and their noise."""
        (observation,), valid, several = self.observations(batch), self.valid(batch), self.hparams.num_masks
        valid = None if valid is None or self.hparams.official else valid.repeat_interleave(several, 0)
        lengths, clones = None if valid is None else valid.sum(1), rng.clones(several)
        masks = self.masking(len(observation) * several, self.grid_of(observation), lengths, clones)
        masks = masks if valid is None else skipping_gaps(masks, valid)
        targets = masks.targets.view(len(observation), several, -1)
        noise = rng.normal(*targets.shape[1:], self.context_encoder.embed_dim) * self.hparams.noise_std
        return Clones(masks.context.view(len(observation), several, -1), targets, noise)

    def kinds(self, drawn: Clones) -> dict[str, Masks]:
        """The masks of the first clone, which pictures show."""
        return {"": Masks(drawn.context[:, 0], drawn.targets[:, :1])}

    def latents(self, batch: Any, drawn: Clones | None = None) -> Latents:
        """Encode the whole for the targets, and what each clone sees, and predict.

        Args:
            batch: with images, waves or words, as the encoder takes them.
            drawn: the clones; drawn if not given.

        Raises:
            ValueError: observations that the encoder does not take.
        """
        (observation,), valid = self.observations(batch), self.valid(batch)
        size, grid = len(observation), self.grid_of(observation)
        if drawn is None:
            drawn = self.draw(batch, Rng.fresh(size, observation.device))
        context, targets, noise = (part.to(observation.device).flatten(0, 1) for part in drawn)
        several = len(context) // size
        tokens = self.context_encoder.tokens(observation)
        features, of_teacher = self.teach(observation, tokens, valid, grid)
        there = None if valid is None else valid.repeat_interleave(several, 0)
        encoded = self.context_encoder.encode(tokens.repeat_interleave(several, 0), context, there, grid)
        counted = None if self.hparams.official else there  # of what is not there, the official code predicts all
        predicted = self.predictor(encoded.values, context, targets, noise, grid, counted)
        weight = None if counted is None else counted.gather(1, targets).float().unflatten(0, (size, several))
        target = gather_tokens(of_teacher, drawn.targets.to(observation.device))
        predictions = {"": Prediction(predicted.unflatten(0, (size, several)), target, weight)}
        if self.hparams.cls_weight and encoded.summary is not None:
            mean = of_teacher.mean(1, keepdim=True).expand(-1, several, -1)
            predictions["cls"] = Prediction(encoded.summary.unflatten(0, (size, several)), mean)
        seen = None if encoded.valid is None else encoded.valid.reshape(size, -1)
        of_context = Tokens(encoded.values.reshape(size, -1, encoded.values.shape[-1]), seen)
        return Latents(predictions, {"context": of_context, "target": features}, features)

    def loss(self, latents: Latents) -> dict[str, Tensor]:
        """The tokens' distance and, weighted, the class token's; and each."""
        if "cls" not in latents.predictions:
            return super().loss(latents)
        terms = super().loss(latents._replace(predictions={"": latents.predictions[""]}))
        cls = self._distances(latents.predictions["cls"]).mean()
        tokens = terms.get("energy", terms["loss"])
        for name in ("loss", "energy") if "energy" in terms else ("loss",):
            terms[name] = terms[name] + self.hparams.cls_weight * cls
        return {**terms, "tokens": tokens, "cls": cls}

    def energy(self, latents: Latents) -> Tensor:
        """How far each sample's tokens are from their targets and, weighted, its class tokens, `[B]`."""
        tokens = super().energy(latents._replace(predictions={"": latents.predictions[""]}))
        if "cls" not in latents.predictions:
            return tokens
        return tokens + self.hparams.cls_weight * self._distances(latents.predictions["cls"]).mean(1)

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

        Args:
            path: a file of fairseq's (`model`).
            num_heads: see `Data2Vec.from_official`, as what follows.
            image_size: another size than the square one that the checkpoint's positions tell.
            strides: of the convolutions of a wave's front end.
            mask_word: the number of a word that stands for hidden ones, which this method does not need.
            **options: everything else that the module takes.

        Raises:
            ValueError: a file that is not such a checkpoint, or sizes that its shapes cannot tell.
        """
        networks = read_networks(path)
        kind, further = cls.kind_of_file(networks, path), {"eps": networks.options["epsilon"]}
        if kind == "2.0 words":
            further |= {"pad_word": 1, "mask_word": mask_word}
        encoder = encoder_configuration(networks.states["context_encoder"], num_heads, image_size, strides, **further)
        sizes = decoder_sizes(networks.states["predictor"])
        module = cls(encoder=encoder, **sizes | cls.published[kind] | options)
        load_networks(module, networks)
        return module
