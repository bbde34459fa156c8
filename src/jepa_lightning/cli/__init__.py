"""`jepa`: one LightningCLI over the modules, data and callbacks of this package and of the user's own project."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from jsonargparse import ActionConfigFile
from jsonargparse.typing import PositiveInt
from lightning.pytorch.callbacks import ModelSummary, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities import rank_zero_warn
from lightning_utilities.core import rank_zero

import jepa_lightning
from jepa_lightning.callbacks import FeatureWriter, Progress, Threads
from jepa_lightning.checkpoints import SafeCheckpointIO, load_encoder
from jepa_lightning.checkpoints.reading import read_file
from jepa_lightning.cli.last import last_checkpoint
from jepa_lightning.cli.parser import NearMissParser, nulls
from jepa_lightning.cli.plan import PlanningTrainer
from jepa_lightning.cli.summary import SavedConfig, summary
from jepa_lightning.cli.zero_shot import evaluate_agents
from jepa_lightning.errors import UnknownEncoderError
from jepa_lightning.evaluation import evaluate, print_table, write_table
from jepa_lightning.modules import JEPA

# What Lightning says at every start and end, advertisements and what `Progress` and the summary say.
SAID = ("💡 Tip", "GPU available: False", "TPU available: False", "`Trainer.fit` stopped: `max_")


class EvaluatingTrainer(PlanningTrainer):
    """A Trainer for a subcommand more."""

    def evaluate(
        self,
        model: pl.LightningModule,
        datamodule: pl.LightningDataModule,
        ckpt_path: list[str] | str,
        num_train: int = 10_000,
        steps: int = 1_000,
        encoder_options: dict[str, Any] | None = None,
        environment: dict[str, Any] | None = None,
        rewards: dict[str, Any] | None = None,
        experts: dict[str, str] | None = None,
        num_samples: int = 10_000,
        num_episodes: int = 10,
        shift: float = 0.0,
        seed: int = 1000,
        weights_only: bool | None = None,
    ) -> None:
        """Read off a frozen encoder's features all that the data set has labels for, into one table.

        Of an agent, such as TDJEPA's, with an `environment`: the returns of its policies for `rewards` that it has
        never seen, whose tasks it infers from labelled states of the data (see `evaluation.zero_shot`).

        The table is printed, and written as `evaluation.csv` and `evaluation.md` into the Trainer's default_root_dir.

        Args:
            model: of a checkpoint that does not say what its encoder is, the module that takes its weights, whose
                `features` are read; not used otherwise.
            datamodule: the data, labelled.
            ckpt_path: a checkpoint of ours, an official one, or a Hugging Face folder; of an agent, those of several
                seeds, too, `[0.ckpt, 1.ckpt]`.
            num_train: training samples that probes are fitted on, at most.
            steps: of a probe's training, on batches of 256.
            encoder_options: further arguments of `load_encoder`, such as `{network: context_encoder, num_heads: 3}`.
            environment: `{id: …, …}`, the arguments of `gymnasium.make`.
            rewards: by name, options of the environment that rewards so, or the path of a function of observations.
            experts: by a reward's name, or `all`, the path of the class of somebody who knows how.
            num_samples: states that are labelled.
            num_episodes: of each reward.
            shift: what is added to labels.
            seed: of the first episode.
            weights_only: true, as a configuration that `fit` has saved says it; nothing else is read.

        Raises:
            ValueError: other content is asked for, or several checkpoints of encoders.
        """
        if weights_only is False:
            raise ValueError("evaluate reads nothing but weights of a checkpoint: leave weights_only as it is, true")
        if environment is not None:
            options: dict[str, Any] = {"rewards": rewards or {}, "experts": experts, "num_samples": num_samples}
            options |= {"num_episodes": num_episodes, "shift": shift, "seed": seed}
            paths = [ckpt_path] if isinstance(ckpt_path, str) else ckpt_path
            return evaluate_agents(self, datamodule, paths, environment, **options)
        if not isinstance(ckpt_path, str):
            raise ValueError("several checkpoints are evaluated together if they are agents': give an environment")
        accelerator = self.strategy.root_device.type
        encoder: Any = ckpt_path
        try:
            grid = getattr(load_encoder(ckpt_path, **(encoder_options or {})), "grid", ())
        except UnknownEncoderError:
            if not isinstance(model, JEPA):
                raise
            grid = None
        # Of series, sounds and words some may not be there, which only their module knows.
        if (grid is None or len(grid) == 1) and isinstance(model, JEPA):
            kept = read_file(Path(ckpt_path)) if Path(ckpt_path).is_file() else {}
            if "state_dict" in kept:  # of others, such as official files, `evaluate` says what to give
                model.load_state_dict(kept["state_dict"])
                encoder = model
        readings = evaluate(encoder, datamodule, num_train, steps, accelerator, encoder_options)
        for ending in (".csv", ".md"):
            write_table(readings, Path(self.default_root_dir) / f"evaluation{ending}")
        print_table(readings)


class JEPACLI(LightningCLI):
    """Lightning's CLI with that parser, and without the checkpoint's hyper-parameters overriding the given ones."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Two more: `evaluate` and `plan`."""
        both = {"model", "datamodule"}
        return {**LightningCLI.subcommands(), "evaluate": both, "plan": both}

    def fit(self, **options: Any) -> None:
        """Train; say what has come of it, also if the training is interrupted or fails."""
        error: BaseException | None = None
        try:
            self.trainer.fit(**options)
        except BaseException as raised:
            error = raised
            raise
        finally:
            if self.trainer.is_global_zero and (text := summary(self.trainer, error)):
                print(f"\n{text}", flush=True)

    def before_predict(self) -> None:
        """Write the features of a JEPA to `features.npz` in the Trainer's default_root_dir, unless told otherwise."""
        callbacks: list[pl.Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        given = any(isinstance(callback, FeatureWriter) for callback in callbacks)
        if isinstance(self.model, JEPA) and not given:
            callbacks.append(FeatureWriter(Path(self.trainer.default_root_dir) / "features.npz"))

    def after_validate(self) -> None:
        """No result is no success."""
        self._must_have(self.trainer.num_val_batches)

    def after_test(self) -> None:
        """No result is no success."""
        self._must_have(self.trainer.num_test_batches)

    def after_predict(self) -> None:
        """No result is no success."""
        self._must_have(self.trainer.num_predict_batches)

    def _must_have(self, batches: list[Any]) -> None:
        if not sum(batches):
            raise ValueError(
                f"{type(self.datamodule).__name__} gave no batch to {self.subcommand}, so there is no result: look "
                "where its held-out data are, and at the Trainer's limits"
            )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """No abbreviations: `--trainer.max_epoch` is a mistake, and to be told."""
        parser = NearMissParser(dump_header=[f"lightning.pytorch=={pl.__version__}"], allow_abbrev=False, **kwargs)
        parser.add_argument("-c", "--config", action=ActionConfigFile, help="a YAML file; later ones are merged in")
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """How many threads there are."""
        of_threads = "threads on a processor; auto tries what is fastest, unless OMP_NUM_THREADS says how many"
        parser.add_argument("--threads", type=Literal["auto"] | PositiveInt, default="auto", help=of_threads)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the command line, with recipes looked up."""
        self.config = parser.parse_args([_find_recipe(argument) for argument in (args or sys.argv[1:])])
        chosen = self.config[self.config.subcommand]
        for line in nulls(chosen):
            parser.error(line)
        if "weights_only" in chosen and chosen.weights_only is None:
            chosen.weights_only = True  # Lightning's default runs what a file says
        if chosen.get("trainer.accumulate_grad_batches") == 0:
            parser.error("--trainer.accumulate_grad_batches is 0: it must be at least 1")
        if chosen.get("ckpt_path") == "last":
            try:
                chosen.ckpt_path = last_checkpoint(chosen)
            except FileNotFoundError as error:
                if self.config.subcommand != "fit":
                    parser.error(str(error))
                rank_zero_warn(f"{error}: the training starts anew")
                chosen.ckpt_path = None

    def instantiate_classes(self) -> None:
        """Make Trainer, module and data; what one of them objects to is said without the parser's words around it."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            raise (error.__cause__ or error) from None

    def instantiate_trainer(self, **options: Any) -> pl.Trainer:
        """The Trainer; unless told otherwise, checkpoints are read and written by `SafeCheckpointIO`."""
        plugins = self._get(self.config_init, "trainer.plugins") or []
        plugins = list(plugins) if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins.append(SafeCheckpointIO())
        if self._get(self.config_init, "trainer.logger") in (None, True):
            # Lightning's default, but for a curve of -1 by the name of `hp_metric`.
            root = self._get(self.config_init, "trainer.default_root_dir") or os.getcwd()
            version = SLURMEnvironment.job_id()
            options["logger"] = TensorBoardLogger(root, version=version, default_hp_metric=False)
        options["callbacks"] = callbacks = self._callbacks()
        if self._get(self.config_init, "trainer.enable_model_summary") is None:
            # `Progress` names the networks and their sizes.
            options["enable_model_summary"] = any(isinstance(callback, ModelSummary) for callback in callbacks)
        return super().instantiate_trainer(plugins=plugins, **options)

    def _callbacks(self) -> list[pl.Callback]:
        """Those of the configuration and, unless it says otherwise, the command line's own."""
        callbacks = self._get(self.config_init, "trainer.callbacks") or []
        callbacks = list(callbacks) if isinstance(callbacks, list) else [callbacks]
        shows_progress = self._get(self.config_init, "trainer.enable_progress_bar") in (None, True)
        if shows_progress and not any(isinstance(callback, ProgressBar) for callback in callbacks):
            callbacks.append(Progress())
        threads = self._get(self.config_init, "threads")
        if threads != "auto":
            torch.set_num_threads(threads)
        elif self.subcommand == "fit" and "OMP_NUM_THREADS" not in os.environ:
            callbacks.insert(0, Threads())
        return callbacks

    def _parse_ckpt_path(self) -> None:
        """Lightning lets the hyper-parameters in `--ckpt_path` override configs and command line without a word."""


def main(args: list[str] | None = None) -> None:
    """Run `jepa fit|validate|test|predict|evaluate|plan --config …`.

    Configurations under `recipes/` that the working directory does not have are those of the installed package.

    Args:
        args: the command line after `jepa`; that of the process without.
    """
    rank_zero.log.addFilter(_is_news)
    # One of Lightning's to itself.
    warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\).* is deprecated", FutureWarning)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # full paths of a user's own classes, which `python -m` would find too
    JEPACLI(
        pl.LightningModule,
        pl.LightningDataModule,
        save_config_callback=SavedConfig,
        trainer_class=EvaluatingTrainer,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        args=args,
    )


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(SAID)


def _find_recipe(argument: str) -> str:
    option, _, path = argument.rpartition("=")
    if path.startswith("recipes/") and not Path(path).exists():
        installed = jepa_lightning.RECIPES / path.removeprefix("recipes/")
        if installed.exists():
            return f"{option}={installed}" if option else str(installed)
    return argument
