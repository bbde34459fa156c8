"""Draws docs/cockpit.png: a healthy run beside a collapsed one, from the folders of their TensorBoard files.

    jepa fit --config recipes/ijepa/shapes.yaml --trainer.default_root_dir healthy
    jepa fit --config recipes/ijepa/shapes.yaml --trainer.default_root_dir collapsed \
        --model.regularizers null --model.momentum [0,0]
    python tests/benchmarks/cockpit.py {healthy,collapsed}/lightning_logs/version_0
"""

import sys
from pathlib import Path

from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

CHARTS = {
    "accuracy of the kNN probe, held-out images": {
        "probe/knn/accuracy": "kNN",
        "probe/knn/raw": "raw pixels",
        "probe/knn/untrained": "untrained",
    },
    "loss": {"train/energy": "prediction", "train/loss": "prediction", "train/constant_loss": "constant prediction"},
    "rank across images (RankMe)": {"collapse/context/rankme": "context", "collapse/target/rankme": "target"},
}


def main() -> None:
    """Read the runs, and draw."""
    figure = Figure(figsize=(10, 6.4))
    axes = figure.subplots(3, 2, sharex=True, sharey="row")
    for column, folder in enumerate(sys.argv[1:3]):
        events = EventAccumulator(folder)
        events.Reload()
        axes[0, column].set_title(["healthy", "collapsed: its own teacher, and no regulariser"][column])
        for row, (title, lines) in enumerate(CHARTS.items()):
            shown = axes[row, column]
            tags = {tag: label for tag, label in lines.items() if tag in events.Tags()["scalars"]}
            if "train/energy" in tags:  # the loss without what regularisers add
                tags.pop("train/loss")
            for tag, label in tags.items():
                steps, values = zip(*((each.step, each.value) for each in events.Scalars(tag)), strict=True)
                shown.plot(steps, values, marker=".", label=label)
            shown.set_ylabel(title.replace(", ", ",\n") if not column else "", fontsize=8)
            shown.legend(fontsize=8)
    for shown in axes[-1]:
        shown.set_xlabel("step")
    figure.align_ylabels()
    figure.savefig(Path(__file__).parents[2] / "docs" / "cockpit.png", dpi=100, bbox_inches="tight")


if __name__ == "__main__":
    main()
