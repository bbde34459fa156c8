"""V-JEPA 2: V-JEPA with rotary positions, in phases of growing clips (Assran et al., arXiv 2506.09985)."""

from __future__ import annotations

from typing import Any

from typing_extensions import Self

from jepa_lightning.modules.vjepa import VJEPA
from jepa_lightning.networks.positions import Positions
from jepa_lightning.schedules import warmup_constant_cooldown


class VJEPA2(VJEPA):
    """V-JEPA with rotary positions, a constant momentum, and a learning rate that is constant between two ramps.

    A training has phases, each a run of its own that starts from the last one's checkpoint (`weights`): first short and
    small clips with a warm-up and no cool-down, then longer and larger ones with a cool-down all the way
    (`warmup=0, cooldown=1`). The defaults are those of the first phase of the published ViT-L/16.

    Args:
        image_size: side of the frames in pixels, or `[rows, columns]`.
        predictor_num_heads: attention heads of the predictor.
        official: as the official code, and its weights, have it: the frequencies of the rotary positions are tiled (see
            `rotation`), and every kind of mask uses the first mask token, as clips of one length do there (of several,
            each length has a token). By default each pair of features has one frequency and each kind of mask a token
            of its own.
        lr: learning rate between warm-up and cool-down.
        start_lr: learning rate at the start of the warm-up.
        final_lr: learning rate at the end of the cool-down.
        warmup: share of the training spent on the linear warm-up, in [0, 1).
        cooldown: share of the training spent on the linear cool-down, in [0, 1].
        weight_decay: weight decay at the start and at the end.
        momentum: momentum of the target encoder at the start and at the end.
        **options: those of `VJEPA`.

    Raises:
        ValueError: a value out of its range.
    """

    def __init__(
        self,
        image_size: int | list[int] = 256,
        predictor_num_heads: int = 12,
        official: bool = False,
        lr: float = 5.25e-4,
        start_lr: float = 1e-4,
        final_lr: float = 1e-6,
        warmup: float = 0.05,
        cooldown: float = 0.0,
        weight_decay: tuple[float, float] = (0.04, 0.04),
        momentum: tuple[float, float] = (0.99925, 0.99925),
        **options: Any,
    ) -> None:
        if not (cooldown >= 0 and warmup + cooldown <= 1):
            raise ValueError(
                f"warmup and cooldown are shares of one training, not below 0 and together not above 1, got {warmup} "
                f"and {cooldown}"
            )
        super().__init__(
            image_size=image_size,
            predictor_num_heads=predictor_num_heads,
            lr=lr,
            start_lr=start_lr,
            final_lr=final_lr,
            warmup=warmup,
            weight_decay=weight_decay,
            momentum=momentum,
            **options,
        )

    @property
    def positions(self) -> Positions:
        """Rotary ones, in the official order or in the corrected one."""
        return "tiled_rope" if self.hparams.official else "rope"

    def mask_token(self, kind: int) -> int:
        """One for each kind of mask; the official code, by the index of another loop, takes the first for all."""
        return 0 if self.hparams.official else kind

    def learning_rate(self, step: int, total: int) -> float:
        """Linear warm-up, constant, linear cool-down."""
        hparams = self.hparams
        warmup, cooldown = hparams.warmup * total, hparams.cooldown * total
        end = self.stretch * total
        return warmup_constant_cooldown(step, end, warmup, cooldown, hparams.start_lr, hparams.lr, hparams.final_lr)

    @classmethod
    def from_official(cls, path: str, *sizes: Any, **options: Any) -> Self:
        """As `VJEPA.from_official`, with `official=True`, which these weights need."""
        return super().from_official(path, *sizes, official=True, **options)
