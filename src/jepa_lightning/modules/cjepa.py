"""C-JEPA: I-JEPA with variance, invariance and covariance terms (Mo and Tong, arXiv 2410.19560)."""

from __future__ import annotations

from typing import Any

from jepa_lightning.modules.ijepa import IJEPA
from jepa_lightning.modules.regularizer import Regularizer, Source


class CJEPA(IJEPA):
    """Contrastive-JEPA (not Causal-JEPA, which shares its short name): `L = L_JEPA + β (25 L_sim + 25 L_std + L_cov)`.

    By default the three terms compare the predictions of an image's target blocks: each is averaged over its tokens and
    projected, and all pairs of blocks count. The paper's text and its algorithms differ in what they compare; the other
    readings are a choice of `vicreg_source`. `L_JEPA` is by default that of I-JEPA's code, the smooth L1 distance; the
    paper's is squared, `distance="l2"`.

    Args:
        beta: weight of the three terms together, zero or more.
        sim: coefficient of the invariance term.
        std: coefficient of the variance term.
        cov: coefficient of the covariance term.
        vicreg_source: what is compared: `prediction_blocks`, or `context_and_target` for the pooled embeddings of
            the two encoders (see `Regularizer` for the others).
        projector: widths of the projector's layers, which the paper leaves open; an empty list for none.
        **options: those of `IJEPA`.

    Source: C-JEPA (arXiv 2410.19560), equations 21 and 22 and appendix C.2.
    """

    def __init__(
        self,
        beta: float = 0.001,
        sim: float = 25.0,
        std: float = 25.0,
        cov: float = 1.0,
        vicreg_source: Source = "prediction_blocks",
        projector: tuple[int, ...] = (2048, 2048, 2048),
        **options: Any,
    ) -> None:
        super().__init__(**options)

    def build_regularizers(self) -> dict[str, Regularizer]:
        """VICReg as published, and what else the configuration asks for."""
        hparams, others = self.hparams, super().build_regularizers()
        if "vicreg" in others:
            raise ValueError("C-JEPA has VICReg already: change it by beta, sim, std, cov, vicreg_source, projector")
        vicreg = Regularizer(
            "vicreg",
            self.context_encoder.embed_dim,
            hparams.beta,
            hparams.vicreg_source,
            hparams.projector,
            sim=hparams.sim,
            std=hparams.std,
            cov=hparams.cov,
        )
        return {"vicreg": vicreg, **others}
