"""Metrics that no sums are enough for: they keep an even sample of the embeddings seen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor
from torchmetrics import Metric

from jepa_lightning.metrics.embedding import check_embeddings, directions, moments, std_per_feature

GOLDEN_RATIO = 0.6180339887498949  # its multiples modulo one are as even as can be, and in step with no period
NUM_SLICES = 256


def uniformity(embeddings: Tensor) -> Tensor:
    """`Uniformity` of embeddings `[..., N, D]` of any floating type, `[...]`; takes memory for N² numbers.

    Raises:
        ValueError: fewer than two dimensions.

    >>> uniformity(torch.tensor([[1.0, 0.0], [0.0, 2.0]])).round(decimals=4)
    tensor(-4., dtype=torch.float64)
    """
    if embeddings.ndim < 2:
        raise ValueError(f"embeddings must be [..., N, D], got {list(embeddings.shape)}")
    unit, num = directions(embeddings.double()), embeddings.shape[-2]
    potential = torch.exp(4 * (unit @ unit.mT - 1))  # a squared distance is 2 - 2 cos
    others = potential.sum((-2, -1)) - potential.diagonal(dim1=-2, dim2=-1).sum(-1)
    mean = others / (num * (num - 1))
    return mean.log()


def sigreg_statistic(embeddings: Tensor) -> Tensor:
    """`SIGRegStatistic` of embeddings `[..., N, D]` of any floating type, `[...]`.

    Raises:
        ValueError: fewer than two dimensions.

    >>> sigreg_statistic(torch.ones(1000, 16)).round()
    tensor(402., dtype=torch.float64)
    """
    sums = moments(embeddings)
    mean = sums.total / sums.num.unsqueeze(-1)
    scale = std_per_feature(sums).square().mean(-1).sqrt()[..., None, None]
    # `std_per_feature` is zero where all are alike but for rounding, which must not be blown up.
    z = torch.where(scale == 0, 0.0, (embeddings.double() - mean.unsqueeze(-2)) / scale)
    # The same at every call and on every device: on the processor these are the loss's own of its first step.
    slices = torch.randn(z.shape[-1], NUM_SLICES, generator=Generator().manual_seed(0), dtype=torch.float32)
    projections = z @ (slices / slices.norm(dim=0)).double().to(z.device)
    t = torch.linspace(0.0, 3.0, 17, dtype=torch.float64, device=z.device)
    gaussian = torch.exp(-t.square() / 2)
    # One t at a time: memory for N x NUM_SLICES numbers and not 17 times as many. The loss itself cannot be used: it
    # adds up over ranks, and a metric's states already are those of all.
    real = torch.stack([(projections * knot).cos().mean(-2) for knot in t], dim=-1)
    imaginary = torch.stack([(projections * knot).sin().mean(-2) for knot in t], dim=-1)
    error = (real - gaussian).square() + imaginary.square()
    statistic = 2 * z.shape[-2] * torch.trapezoid(error * gaussian, t).mean(-1)
    return torch.where(sums.num > 1, statistic, torch.nan)


class SampleMetric(Metric):
    """Base of the metrics that need the embeddings themselves: it keeps up to `num_samples` of all that it has seen.

    Of more, an even part stays: the i-th embedding has the priority i times the golden ratio modulo one, and the lowest
    stay. Every stretch of the data has its share, whatever period is in their order, and no random number is drawn.
    How the embeddings are cut into batches makes no difference. The parts of several ranks are put together and thinned
    the same way, each in proportion to what it has seen: as long as all ranks together have seen at most `num_samples`,
    the value is that of one process with all of them.

    In a `MetricCollection`, metrics of one `num_samples` share the sample (a compute group).

    Args:
        embed_dim: D.
        num_samples: how many embeddings to keep; memory for that many times D + 1 float64 numbers.
        **kwargs: those of `torchmetrics.Metric`.

    Raises:
        ValueError: fewer than two samples.
    """

    full_state_update = True  # a batch on its own would start over at i = 0
    num: Tensor
    rows: Tensor

    def __init__(self, embed_dim: int, num_samples: int = 2048, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_samples < 2:
            raise ValueError(f"num_samples must be at least 2, got {num_samples}")
        self.add_state("num", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        # The last column is the priority, infinite where a row is free: one state, which ranks reduce as a whole.
        free = torch.full((num_samples, embed_dim + 1), torch.inf, dtype=torch.float64)
        self.add_state("rows", free, dist_reduce_fx=_thin)

    def update(self, embeddings: Tensor) -> None:
        """Add embeddings `[N, D]`.

        Raises:
            ValueError: another shape.
        """
        check_embeddings(embeddings, self.rows.shape[1] - 1)
        num = self.num.double()  # a module's `to(torch.bfloat16)` takes its metrics along, and that counts to 256
        index = num + torch.arange(len(embeddings), device=embeddings.device)
        new = torch.cat([embeddings.double(), (index * GOLDEN_RATIO % 1).unsqueeze(1)], dim=1)
        self.rows = _lowest(torch.cat([self.rows.double(), new]), len(self.rows))
        self.num = num + len(embeddings)

    def sample(self) -> Tensor:
        """The embeddings kept, `[up to num_samples, D]`."""
        return self.rows[self.rows[:, -1].isfinite(), :-1]


def _lowest(rows: Tensor, num: int) -> Tensor:
    """The `num` rows of lowest priority."""
    return rows[rows[:, -1].topk(num, largest=False).indices]


def _thin(rows: Tensor) -> Tensor:
    """Rows `[ranks, num_samples, D + 1]` as those of one rank."""
    return _lowest(rows.flatten(0, 1), rows.shape[1])


class Uniformity(SampleMetric):
    """How evenly directions cover the sphere: `log mean exp(−2 |ẑ_i − ẑ_j|²)` over all pairs of different embeddings.

    In [−8, 0]: about −4 for directions that are spread evenly over a sphere of many dimensions, 0 where all are the
    same; zeros count as alike and as orthogonal to the rest. Lower is better. NaN for fewer than two embeddings.

    It is a sum over pairs, which batches do not add up to: it is taken over an even sample of the embeddings, see
    `SampleMetric`.

    Source: Wang and Isola (arXiv 2005.10242), section 4, with t = 2.

    >>> metric = Uniformity(2)
    >>> metric.update(torch.tensor([[1.0, 0.0], [2.0, 0.0]]))
    >>> metric.update(torch.tensor([[0.0, 1.0]]))
    >>> metric.compute()  # one pair of three alike, two orthogonal: log((1 + 2 exp(-4)) / 3)
    tensor(-1.0626, dtype=torch.float64)
    """

    higher_is_better = False

    def compute(self) -> Tensor:
        """The uniformity, in [-8, 0]."""
        return uniformity(self.sample())


class SIGRegStatistic(SampleMetric):
    """How far from an isotropic Gaussian embeddings are: the statistic of `jepa_lightning.losses.SIGReg`, as a reading.

    For N samples and a unit vector a it is `N ∫ |φ(t) − exp(−t²/2)|² exp(−t²/2) dt` with φ the empirical characteristic
    function of `aᵀz`, averaged over 256 fixed directions. Other than in the loss, the mean is taken off first, and all
    features are divided by one scale (the root of their mean variance): what is left to see is the shape.

    Isotropic Gaussian samples have about 0.57 (0.570 − 0.241 / D), whatever N is; the loss has 1.053, for there the
    mean and scale are given and not fitted. All else grows with N: 0.402 N after a collapse to one point, 0.16 N
    where one direction or feature outweighs all others, less for clusters or a falling spectrum. So compare at the same
    N, which is `num_samples` once that many have been seen. Independent features of any distribution read as Gaussian,
    since most directions mix many of them. NaN for fewer than two embeddings.

    Source: Balestriero and LeCun, LeJEPA (arXiv 2511.08544), section 4.

    >>> metric = SIGRegStatistic(16, num_samples=1024)
    >>> metric.update(3 + 2 * torch.randn(1024, 16, generator=torch.Generator().manual_seed(0)))
    >>> bool(0.4 < metric.compute() < 0.8)
    True
    """

    higher_is_better = False

    def compute(self) -> Tensor:
        """The statistic, zero or more."""
        return sigreg_statistic(self.sample())
