"""Whether the embeddings still tell samples, and the tokens of a sample, apart."""

from __future__ import annotations

from typing import Any, Literal, get_args

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchmetrics import MetricCollection

from jepa_lightning.callbacks.memory import RememberingCallback, has_held_out
from jepa_lightning.callbacks.readings import (
    across_images,
    across_tokens,
    agreement,
    deviations,
    draw_spectra,
    mean_target,
    place_share,
)
from jepa_lightning.callbacks.teacher import relative_distance, students_and_teachers
from jepa_lightning.clock import clock
from jepa_lightning.metrics import Moments, eigenvalues
from jepa_lightning.step import Latents

PATIENCE = 3  # low readings in a row that make a collapse
PENDING = 1024  # samples that are added up at once: for one batch alone it would be mostly overhead

OnCollapse = Literal["warn", "stop", "raise"]


class CollapseError(RuntimeError):
    """The embeddings have collapsed."""


class CollapseMonitor(RememberingCallback):
    """Logs how spread out the embeddings of every branch are, across samples and across tokens, and minds a collapse.

    Under `collapse/<branch>/<metric>`, for every embedding of the step by its name (`context` and `target` of most
    methods) and every prediction (`prediction`, or `prediction/<name>` of several):

    - `rankme`, `rankme_centred`, `std`, `dead`, `correlation`, `cosine`, `non_orthonormality`, and the covariance's
      `largest_eigenvalue` and `smallest_eigenvalue`: of the pooled embedding of a sample, across those of the last
      `every_n_steps` steps (see `jepa_lightning.metrics`);
    - `token_rankme`, `token_std`, `token_cosine`: of the tokens of one sample, averaged over some samples of the step,
      where a sample has several;
    - `token_place`, of the target: the share of its tokens' variance that their place alone explains, 0 to 1.

    An encoder that has come to encode only where a token is looks alive on tokens and is dead across samples. Further:

    - `train/constant_loss`, beside `train/loss` (`train/energy` where a loss has further terms): that of a
      constant prediction, the mean target. A loss that does not stay below it has learned nothing; both falling
      together is the collapse that a loss alone hides;
    - `collapse/prediction/target_cosine`: the mean cosine of predicted and target tokens, of each prediction;
    - `collapse/prediction/deviation` and `collapse/prediction/target_deviation`: the standard deviation of a predicted
      number, and of one of its target, over all tokens of the step, averaged over the features: what data2vec's code
      watches;
    - `collapse/target/student_distance`: how far the teachers' weights are from the students', over their norm;
    - the picture `collapse/spectrum`, at every validation or, without held-out data, in every epoch: the eigenvalues of
      each branch's covariance.

    At the default interval it costs 1.7 % of a step of `recipes/ijepa/shapes.yaml` and 0.8 % of one of
    `recipes/vjepa/moving_shapes.yaml`; larger models, less (`python tests/benchmarks/monitor.py`, on a core of an AMD
    EPYC).

    A run has collapsed when, past the first tenth of its training and for three readings in a row, either RankMe of the
    target across samples (of a method without an embedding of that name, of any embedding) has been below `min_rank`
    (and below half of its first reading, as an encoder whose tokens say little but where they are may start at 5 and
    learn all the same), or the predictions of different samples have been alike, with a mean cosine above `max_cosine`,
    or, if asked for, targets or predictions have deviated less than `min_deviations`. In the tables "Collapse on
    purpose" of `recipes/README.md` that is said of 44 of 96 runs, at steps 300 to 1,000 of 1,562 or 1,874. All of them
    end with a rank below 6.5 or a cosine of 0.99 or more; of the others one ends with a rank of 5.7, and the rest with
    7.4 or more.

    Args:
        every_n_steps: batches between two readings, at least 1.
        on_collapse: `warn` once, `stop` the training after the current step, or `raise` a `CollapseError`.
        min_rank: the RankMe below which the target has collapsed.
        max_cosine: the mean cosine above which the predictions have.
        min_deviations: the deviations of targets and of predictions below which either has; what is healthy depends on
            the scale of a method's targets, and without they are not minded. data2vec's own rule is [0.1, 0.01]; its
            code stops at the first such step after 5,000.

    Attributes:
        alarm: what has collapsed, and when, in a sentence; None as long as nothing has.

    Raises:
        ValueError: an interval below 1, or another reaction.
    """

    def __init__(
        self,
        every_n_steps: int = 50,
        on_collapse: OnCollapse = "warn",
        min_rank: float = 5.0,
        max_cosine: float = 0.98,
        min_deviations: tuple[float, float] | None = None,
    ) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}")
        if on_collapse not in get_args(OnCollapse):
            raise ValueError(f"on_collapse must be one of {', '.join(get_args(OnCollapse))}, got {on_collapse!r}")
        self.every_n_steps = every_n_steps
        self.on_collapse = on_collapse
        self.min_rank = min_rank
        self.max_cosine = max_cosine
        self.min_deviations = min_deviations
        self.forget()

    def forget(self) -> None:
        """Be as new: no reading yet, and no alarm."""
        self._metrics: dict[str, MetricCollection] = {}
        self._pending: dict[str, list[Tensor]] = {}  # mean tokens that are still to be added up
        self._sums: dict[str, Moments] = {}  # of this process at the last reading
        self._low = 0  # readings of a collapse in a row
        self.alarm: str | None = None
        self._first_ranks: dict[str, float] = {}  # by branch

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Warn of a training that ends before the first reading."""
        batches = clock(trainer).total * trainer.accumulate_grad_batches
        if batches < self.every_n_steps and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            rank_zero_warn(
                f"CollapseMonitor takes no reading: every_n_steps={self.every_n_steps} and this training has {batches} "
                "batches; give a smaller number, or nobody minds a collapse"
            )

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Add up this step's samples; at the end of an interval, log."""
        latents: Latents = outputs["latents"]
        branches = dict(latents.embeddings)
        branches |= {branch(name): each.tokens() for name, each in latents.predictions.items()}
        for name, tokens in branches.items():
            self._pending.setdefault(name, []).append(tokens.float().pooled())
        reading = (trainer.fit_loop.total_batch_idx + 1) % self.every_n_steps == 0  # also of a resumed run
        if reading or sum(map(len, next(iter(self._pending.values())))) >= PENDING:
            self._add_up()
        if not reading:
            return
        readings: dict[str, Tensor] = {}
        for name, tokens in branches.items():
            computed = self._metrics[name].compute()
            pl_module.log_dict(computed)
            readings |= computed
            metric: Any = self._metrics[name]["rankme"]
            self._sums[name] = metric.sums()
            self._metrics[name].reset()
            for of_tokens, value in across_tokens(tokens).items():
                pl_module.log(f"collapse/{name}/token_{of_tokens}", value, sync_dist=True)
            # Others may be of some tokens of each sample only, and then the same place in a row is not the same in all.
            if is_target(name) and tokens.values.shape[1] > 1:
                pl_module.log(f"collapse/{name}/token_place", place_share(tokens, trainer).float())
        constant, low = {}, ""
        for name, each in latents.predictions.items():
            mean = mean_target(each, trainer).to(each.target.dtype)
            constant[name] = each._replace(prediction=mean.expand_as(each.target))
            pl_module.log(f"collapse/{branch(name)}/target_cosine", agreement(each, trainer))
            spread = deviations(each, trainer)
            for of, value in zip(("deviation", "target_deviation"), spread, strict=True):
                pl_module.log(f"collapse/{branch(name)}/{of}", value)
            low = low or self._too_low(branch(name), *spread)
        energy = pl_module.energy(latents._replace(predictions=constant)).mean()
        pl_module.log("train/constant_loss", energy, sync_dist=True)
        if pairs := students_and_teachers(pl_module):
            pl_module.log("collapse/target/student_distance", relative_distance(pairs))
        targets = [name for name in latents.embeddings if is_target(name)]
        ranks = {name: float(readings[f"collapse/{name}/rankme"]) for name in targets or latents.embeddings}
        cosines = [float(readings[f"collapse/{branch(name)}/cosine"]) for name in latents.predictions]
        self._mind(trainer, ranks, max(cosines), low)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Draw the spectrum of the last reading."""
        if not trainer.sanity_checking:
            self._draw(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """The same where there are no held-out data."""
        if not has_held_out(trainer):
            self._draw(trainer)

    def _draw(self, trainer: pl.Trainer) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and self._sums:
                spectra = {name: eigenvalues(sums, centred=True).flip(-1) for name, sums in self._sums.items()}
                logger.experiment.add_figure("collapse/spectrum", draw_spectra(spectra), trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """The first readings and how many in a row have been low, which a resumed run goes by too."""
        return {"first_ranks": self._first_ranks, "low": self._low}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the readings of the run that is resumed."""
        of_0_1 = {"target": state_dict["first_rank"]} if state_dict.get("first_rank") is not None else {}
        self._first_ranks, self._low = state_dict.get("first_ranks", of_0_1), state_dict.get("low", 0)

    def _add_up(self) -> None:
        """Update the metrics with what is pending."""
        for name, means in self._pending.items():
            if name not in self._metrics:
                self._metrics[name] = across_images(name, means[0].shape[-1]).to(means[0].device)
            self._metrics[name].update(torch.cat(means))
        self._pending = {}

    def _too_low(self, name: str, prediction: Tensor, target: Tensor) -> str:
        """Which deviation is too low, if one is and they are minded: in words."""
        if self.min_deviations is None:
            return ""
        for of, value, limit in zip(("targets", "predictions"), (target, prediction), self.min_deviations, strict=True):
            if float(value) < limit:
                return f", the deviation of the {of} of {name} {float(value):.3g} (collapsed below {limit})"
        return ""

    def _mind(self, trainer: pl.Trainer, ranks: dict[str, float], cosine: float, deviation: str) -> None:
        """Count the readings of a collapse, the same in all processes, and react to the last that it takes."""
        for name, rank in ranks.items():
            self._first_ranks.setdefault(name, rank)
        low = [name for name, rank in ranks.items() if rank < min(self.min_rank, self._first_ranks[name] / 2)]
        collapsed = bool(low) or cosine > self.max_cosine or bool(deviation)
        self._low = self._low + 1 if collapsed and clock(trainer).progress >= 0.1 else 0
        if self._low < PATIENCE or self.alarm is not None:  # of a resumed run it may be more
            return
        worst = min(ranks, key=lambda name: ranks[name])
        self.alarm = (
            f"the embeddings have collapsed, for {PATIENCE} readings in a row until step {clock(trainer).step}: RankMe "
            f"of the {worst} across samples is {ranks[worst]:.1f} (collapsed below {self.min_rank}), the mean cosine "
            f"of the predictions of different samples {cosine:.3f} (collapsed above {self.max_cosine}){deviation}"
        )
        message = (
            f"{self.alarm}. Lower the learning rate, raise the momentum towards 1, or add a regulariser "
            "(--model.regularizers)"
        )
        if self.on_collapse == "raise":
            raise CollapseError(message)
        rank_zero_warn(message)
        trainer.should_stop = trainer.should_stop or self.on_collapse == "stop"


def is_target(embedding: str) -> bool:
    """Whether an embedding is the target, or a part of it."""
    return embedding.split("/")[0] == "target"


def branch(prediction: str) -> str:
    """The name under which a prediction is logged."""
    return f"prediction/{prediction}" if prediction else "prediction"
