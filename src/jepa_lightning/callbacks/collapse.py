"""Whether the embeddings still tell images, and the tokens of an image, apart."""

from __future__ import annotations

from typing import Any, Literal, get_args

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from jepa_lightning.callbacks.ema import students_and_teachers
from jepa_lightning.callbacks.step import predictions
from jepa_lightning.metrics import (
    DeadFeatures,
    FeatureStd,
    MeanCorrelation,
    MeanCosine,
    Moments,
    RankMe,
    eigenvalues,
    feature_std,
    mean_cosine,
    moments,
    rankme,
)

TOKEN_IMAGES = 8  # images a step whose tokens are looked at
PATIENCE = 3  # low readings in a row that make a collapse
PENDING = 1024  # images that are added up at once: for one batch alone it would be mostly overhead

OnCollapse = Literal["warn", "stop", "raise"]


class CollapseError(RuntimeError):
    """The embeddings have collapsed."""


class CollapseMonitor(pl.Callback):
    """Logs how spread out the embeddings of every branch are, across images and across tokens, and minds a collapse.

    Under `collapse/<branch>/<metric>`, for the branches `context`, `target` and `prediction`:

    - `rankme`, `rankme_centred`, `std`, `dead`, `correlation`, `cosine`: of the mean token of an image, across the
      images of the last `every_n_steps` steps (see `jepa_lightning.metrics`);
    - `token_rankme`, `token_std`, `token_cosine`: of the tokens of one image, averaged over some images of the step.

    An encoder that has come to encode only where a token is looks alive on tokens and is dead across images. Further:

    - `train/constant_loss`, beside `train/loss` (`train/energy` where a loss has further terms): that of a
      constant prediction, the mean target. A loss that does not stay below it has learned nothing; both falling
      together is the collapse that a loss alone hides;
    - `collapse/prediction/target_cosine`: the mean cosine of predicted and target tokens;
    - `collapse/target/student_distance`: how far the teacher's weights are from the student's, over their norm;
    - the picture `collapse/spectrum`, at every validation or, without held-out data, in every epoch: the eigenvalues of
      each branch's covariance.

    At the default interval it costs 1.7 % of a step of `recipes/ijepa/shapes.yaml` and 0.8 % of one of
    `recipes/vjepa/moving_shapes.yaml`; larger models, less (`python tests/benchmarks/monitor.py`, on a core of an AMD
    EPYC).

    A run has collapsed when, past the first tenth of its training and for three readings in a row, either RankMe of the
    target across images has been below `min_rank` (and below half of its first reading, as an encoder whose tokens say
    little but where they are may start at 5 and learn all the same), or the predictions of different images have been
    alike, with a mean cosine above `max_cosine`. In the tables "Collapse on purpose" of `recipes/README.md` that is
    said of 44 of 96 runs, at steps 300 to 1,000 of 1,562 or 1,874. All of them end with a rank below 6.5 or a cosine of
    0.99 or more; of the others one ends with a rank of 5.7, and the rest with 7.4 or more.

    Args:
        every_n_steps: batches between two readings, at least 1.
        on_collapse: `warn` once, `stop` the training after the current step, or `raise` a `CollapseError`.
        min_rank: the RankMe below which the target has collapsed.
        max_cosine: the mean cosine above which the predictions have.

    Raises:
        ValueError: an interval below 1, or another reaction.
    """

    def __init__(
        self,
        every_n_steps: int = 50,
        on_collapse: OnCollapse = "warn",
        min_rank: float = 5.0,
        max_cosine: float = 0.98,
    ) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}")
        if on_collapse not in get_args(OnCollapse):
            raise ValueError(f"on_collapse must be one of {', '.join(get_args(OnCollapse))}, got {on_collapse!r}")
        self.every_n_steps = every_n_steps
        self.on_collapse = on_collapse
        self.min_rank = min_rank
        self.max_cosine = max_cosine
        self._metrics: dict[str, MetricCollection] = {}
        self._pending: dict[str, list[Tensor]] = {}  # mean tokens that are still to be added up
        self._sums: dict[str, Moments] = {}  # of this process at the last reading
        self._low = 0  # readings of a collapse in a row
        self._told = False
        self._first_rank: float | None = None

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Add up this step's images; at the end of an interval, log."""
        several = predictions(outputs)
        branches = {
            "context": torch.cat([each.context for each in several], dim=1),
            "target": several[0].features,
            "prediction": torch.cat([each.prediction.flatten(1, 2) for each in several], dim=1),
        }
        for branch, tokens in branches.items():
            self._pending.setdefault(branch, []).append(tokens.float().mean(1))
        reading = (trainer.fit_loop.total_batch_idx + 1) % self.every_n_steps == 0  # also of a resumed run
        if reading or sum(map(len, self._pending["target"])) >= PENDING:
            self._add_up()
        if not reading:
            return
        readings: dict[str, Tensor] = {}
        for branch, tokens in branches.items():
            computed = self._metrics[branch].compute()
            pl_module.log_dict(computed)
            readings |= computed
            metric: Any = self._metrics[branch]["rankme"]
            self._sums[branch] = metric.sums()
            self._metrics[branch].reset()
            sums = moments(tokens[:TOKEN_IMAGES])
            for name, function in (("rankme", rankme), ("std", feature_std), ("cosine", mean_cosine)):
                pl_module.log(f"collapse/{branch}/token_{name}", function(sums).mean(), sync_dist=True)
        constant, agreement = [], []
        for each in several:
            # Over the batch of all processes: the mean of less is closer to each of its targets.
            mean = trainer.strategy.reduce(each.target.mean(dim=(0, 1, 2)), reduce_op="mean").expand_as(each.target)
            constant.append(pl_module.energy(each._replace(prediction=mean)).mean())
            agreement.append(F.cosine_similarity(each.prediction.float(), each.target.float(), dim=-1).mean())
        pl_module.log("train/constant_loss", torch.stack(constant).mean(), sync_dist=True)
        pl_module.log("collapse/prediction/target_cosine", torch.stack(agreement).mean(), sync_dist=True)
        if pairs := students_and_teachers(pl_module):
            pl_module.log("collapse/target/student_distance", relative_distance(pairs))
        self._mind(trainer, float(readings["collapse/target/rankme"]), float(readings["collapse/prediction/cosine"]))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Draw the spectrum of the last reading."""
        if not trainer.sanity_checking:
            self._draw(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """The same where there are no held-out data."""
        if not sum(trainer.num_val_batches):
            self._draw(trainer)

    def _draw(self, trainer: pl.Trainer) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and self._sums:
                spectra = {branch: eigenvalues(sums, centred=True).flip(-1) for branch, sums in self._sums.items()}
                logger.experiment.add_figure("collapse/spectrum", draw_spectra(spectra), trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """The first reading and how many in a row have been low, which a resumed run goes by too."""
        return {"first_rank": self._first_rank, "low": self._low}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the readings of the run that is resumed."""
        self._first_rank, self._low = state_dict["first_rank"], state_dict.get("low", 0)

    def _add_up(self) -> None:
        """Update the metrics with what is pending."""
        for branch, means in self._pending.items():
            if branch not in self._metrics:
                self._metrics[branch] = across_images(branch, means[0].shape[-1]).to(means[0].device)
            self._metrics[branch].update(torch.cat(means))
        self._pending = {}

    def _mind(self, trainer: pl.Trainer, rank: float, cosine: float) -> None:
        """Count the readings of a collapse, the same in all processes, and react to the last that it takes."""
        early = trainer.global_step < 0.1 * trainer.estimated_stepping_batches
        self._first_rank = rank if self._first_rank is None else self._first_rank
        collapsed = rank < min(self.min_rank, self._first_rank / 2) or cosine > self.max_cosine
        self._low = self._low + 1 if collapsed and not early else 0
        if self._low < PATIENCE or self._told:  # of a resumed run it may be more
            return
        self._told = True
        message = (
            f"the embeddings have collapsed, for {PATIENCE} readings in a row until step {trainer.global_step}: RankMe "
            f"of the target across images is {rank:.1f} (collapsed below {self.min_rank}), the mean cosine of the "
            f"predictions of different images {cosine:.3f} (collapsed above {self.max_cosine}). Lower the learning "
            "rate, raise the momentum towards 1, or add a regulariser (--model.regularizers)"
        )
        if self.on_collapse == "raise":
            raise CollapseError(message)
        rank_zero_warn(message)
        trainer.should_stop = trainer.should_stop or self.on_collapse == "stop"


def across_images(branch: str, width: int) -> MetricCollection:
    """The metrics of the mean tokens of a branch, which share their sums."""
    metrics: dict[str, Metric | MetricCollection] = {
        "rankme": RankMe(width),
        "rankme_centred": RankMe(width, centred=True),
        "std": FeatureStd(width),
        "dead": DeadFeatures(width),
        "correlation": MeanCorrelation(width),
        "cosine": MeanCosine(width),
    }
    # Said and not found out: by a first batch of NaN, no two of them would seem to have the same sums.
    return MetricCollection(metrics, prefix=f"collapse/{branch}/", compute_groups=[list(metrics)])


def relative_distance(pairs: Any) -> Tensor:
    """The distance between the weights of students and teachers, over the norm of the teachers'."""
    students = [parameter for student, _ in pairs for parameter in student.parameters()]
    teachers = [parameter for _, teacher in pairs for parameter in teacher.parameters()]
    differences = torch._foreach_sub(students, teachers)
    apart, norm = (torch.stack(torch._foreach_norm(tensors)).norm() for tensors in (differences, teachers))
    return apart / norm


def draw_spectra(spectra: dict[str, Tensor]) -> Figure:
    """The eigenvalues `[D]` of each branch, largest first, on a logarithmic scale."""
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    for branch, values in spectra.items():
        axes.plot(torch.arange(1, len(values) + 1), values.cpu().clamp(min=1e-8), label=branch)
    axes.set(yscale="log", xlabel="direction", ylabel="variance", title="spectrum")
    axes.set_ylim(bottom=1e-8)
    axes.legend()
    return figure
