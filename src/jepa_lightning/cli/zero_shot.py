"""`jepa evaluate` of an agent: rewards that it has never seen, in an environment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from rich.table import Table

from jepa_lightning.callbacks.episodes import gif
from jepa_lightning.evaluation.scores import table, write_scores
from jepa_lightning.evaluation.zero_shot import zero_shot
from jepa_lightning.planning.agent import load_agent


def evaluate_agents(
    trainer: Any, datamodule: Any, paths: Sequence[str], environment: dict[str, Any], **options: Any
) -> None:
    """Print what the agents of checkpoints reach for each reward; write it, and film the first one's first episodes.

    Raises:
        ValueError: data that are no steps of an environment, or no rewards, or no checkpoint.
    """
    if not hasattr(datamodule, "steps"):
        raise ValueError(
            f"rewards are known by labelled states, of a TransitionsDataModule, not of a {type(datamodule).__name__}"
        )
    if not options["rewards"]:
        raise ValueError("give rewards by name, --rewards '{walk: {task: walk}, near: my_rewards.near}'")
    if not paths:
        raise ValueError("give the checkpoint of an agent, or those of several seeds, --ckpt_path '[0.ckpt, 1.ckpt]'")
    agents = [load_agent(path, trainer.strategy.root_device) for path in paths]
    datamodule.setup("test")
    loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
    outcome = zero_shot(agents, datamodule, environment, film=bool(loggers), **options)
    write_scores(outcome.scores, Path(trainer.default_root_dir))
    for logger in loggers:
        for name, frames in outcome.films.items():
            logger.experiment._get_file_writer().add_summary(gif(f"zero_shot/{name}", frames), 0)
        logger.experiment.flush()  # no training ends here, which would write what is still waiting in a thread
    rows = table(outcome.scores)
    printed = Table(*rows[0])
    for row in rows[1:]:
        printed.add_row(*row)
    Console().print(printed)
