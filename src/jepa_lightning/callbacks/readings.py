"""What `CollapseMonitor` reads off the embeddings and predictions of a step."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from jepa_lightning.metrics import (
    CovarianceSpectrum,
    DeadFeatures,
    FeatureStd,
    MeanCorrelation,
    MeanCosine,
    NonOrthonormality,
    RankMe,
    feature_std,
    mean_cosine,
    moments,
    rankme,
)
from jepa_lightning.step import Prediction, Tokens, nearest_future

TOKEN_IMAGES = 8  # images a step whose tokens are looked at


def across_images(name: str, width: int) -> MetricCollection:
    """The metrics of the pooled embeddings of a branch, which share their sums."""
    metrics: dict[str, Metric | MetricCollection] = {
        "rankme": RankMe(width),
        "spectrum": CovarianceSpectrum(width),  # three readings
        "std": FeatureStd(width),
        "dead": DeadFeatures(width),
        "correlation": MeanCorrelation(width),
        "cosine": MeanCosine(width),
        "non_orthonormality": NonOrthonormality(width),
    }
    # Said and not found out: by a first batch of NaN, no two of them would seem to have the same sums.
    return MetricCollection(metrics, prefix=f"collapse/{name}/", compute_groups=[list(metrics)])


def across_tokens(tokens: Tokens) -> dict[str, Tensor]:
    """How far the tokens of one image are spread, averaged over some images; nothing where an image has only one."""
    if tokens.values.shape[1] < 2:
        return {}
    if tokens.valid is None:
        sums = [moments(tokens.values[:TOKEN_IMAGES].float())]
    else:
        parts = zip(tokens.values[:TOKEN_IMAGES].float(), tokens.valid[:TOKEN_IMAGES], strict=True)
        sums = [moments(values[valid].unsqueeze(0)) for values, valid in parts if valid.sum() > 1]
    functions = {"rankme": rankme, "std": feature_std, "cosine": mean_cosine}
    return {name: torch.cat([function(each) for each in sums]).mean() for name, function in functions.items() if sums}


def place_share(tokens: Tokens, trainer: pl.Trainer) -> Tensor:
    """The share of the variance of tokens that their place alone explains, over the batch of all processes.

    Adjusted for how few observations there are: of tokens that know nothing of their places it is 0, give or take what
    is left to chance, and of those that are a function of it 1. Of a single observation it is 0.
    """
    values, (size, count) = tokens.values.double(), tokens.values.shape[:2]
    there = values.new_ones(size, count, 1) if tokens.valid is None else tokens.valid.unsqueeze(-1).double()
    of_places = torch.cat([values * there, there], -1).sum(0)
    squares = (values.square() * there).sum()
    if trainer.world_size > 1:  # whose longest sequences may differ
        longest = int(trainer.strategy.reduce(torch.tensor(float(count), device=values.device), reduce_op="max"))
        padded = F.pad(of_places, (0, 0, 0, longest - count))
        both = trainer.strategy.reduce(torch.cat([padded.flatten(), squares.unsqueeze(0)]), reduce_op="sum")
        of_places, squares = both[:-1].view(longest, -1), both[-1]
    sums, counts = of_places[:, :-1], of_places[:, -1]
    total = counts.sum()
    within = squares - (sums.square().sum(1) / counts.clamp(min=1)).sum()
    around = squares - sums.sum(0).square().sum() / total
    share = 1 - (within / (total - (counts > 0).sum())) / (around / (total - 1))
    return share.nan_to_num(0.0, 0.0, 0.0)


def mean_target(each: Prediction, trainer: pl.Trainer) -> Tensor:
    """The mean target `[D]` over the batch of all processes: that of less is closer to each of its targets."""
    return mean_over_ranks(each.target.float(), each.weight, trainer)


def agreement(each: Prediction, trainer: pl.Trainer) -> Tensor:
    """The mean cosine of what is predicted and its target over the batch of all processes; of futures, the nearest."""
    target = each.target if each.futures is None else each.target.unsqueeze(1)
    apart, weight = nearest_future(1 - F.cosine_similarity(each.prediction.float(), target.float(), dim=-1), each)
    return 1 - mean_over_ranks(apart.unsqueeze(-1), weight, trainer).squeeze()


def deviations(each: Prediction, trainer: pl.Trainer) -> tuple[Tensor, Tensor]:
    """The standard deviation of a predicted number, and of one of a target, over all tokens of all processes.

    The mean over the features, of tokens that have a weight; what the code of data2vec calls `pred_var` and
    `target_var`.
    """
    found = []
    for vectors, weight in ((each.tokens().values, each.tokens().valid), (each.target, each.weight)):
        rows = vectors.flatten(0, -2).double()
        counted = rows.new_ones(len(rows)) if weight is None else (weight > 0).flatten().double()
        sums = torch.stack([counted.sum().expand(rows.shape[1]), counted @ rows, counted @ rows.square()])
        count, total, squares = trainer.strategy.reduce(sums, reduce_op="sum")
        variance = (squares - total.square() / count) / (count - 1).clamp(min=1)
        found.append((variance.clamp(min=0) + 1e-6).sqrt().mean())
    return found[0], found[1]


def mean_over_ranks(values: Tensor, weight: Tensor | None, trainer: pl.Trainer) -> Tensor:
    """The mean `[D]` of vectors `[B, ..., D]` by weights `[B, ...]`."""
    vectors = values.flatten(0, -2)
    weights = vectors.new_ones(len(vectors)) if weight is None else weight.flatten().to(vectors)
    sums = trainer.strategy.reduce(torch.cat([weights @ vectors, weights.sum().unsqueeze(0)]), reduce_op="sum")
    return sums[:-1] / torch.where(sums[-1] > 0, sums[-1], 1.0)


def draw_spectra(spectra: dict[str, Tensor]) -> Figure:
    """The eigenvalues `[D]` of each branch, largest first, on a logarithmic scale."""
    figure = Figure(figsize=(5, 3.5))
    axes = figure.add_axes((0.14, 0.13, 0.84, 0.79))
    for name, values in spectra.items():
        axes.plot(torch.arange(1, len(values) + 1), values.cpu().clamp(min=1e-8), label=name)
    axes.set(yscale="log", xlabel="direction", ylabel="variance", title="spectrum of the embeddings")
    axes.set_ylim(bottom=1e-8)
    axes.legend()
    return figure
