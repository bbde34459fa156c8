"""TD-JEPA: whole updates against traces of the official code (`golden/td_jepa`), and what the traces do not have."""

from __future__ import annotations

import copy
import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys
from helpers import TINY_TD, Steps, assert_close, copies, difference, frame_steps, quiet_trainer, steps
from lightning.pytorch.callbacks import LambdaCallback
from safetensors.torch import load_file
from scipy.stats import kstest
from torch import Tensor
from torch.utils.data import DataLoader

from jepa_lightning import TDJEPA
from jepa_lightning.callbacks import CollapseMonitor
from jepa_lightning.checkpoints.families import tdjepa as official
from jepa_lightning.draws import Rng
from jepa_lightning.losses import orthonormality
from jepa_lightning.modules.tdjepa import Drawn
from jepa_lightning.networks.drq import shift_frames
from jepa_lightning.networks.policies import Tanh, pessimistic, to_sphere

GOLDEN = Path(__file__).parent / "golden" / "td_jepa"
VARIANTS = ("asymmetric", "symmetric", "flow")
FIELDS = ("observation", "action", "next_observation", "terminated")


@cache
def trace(variant: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / variant / "trace.safetensors")


def config(variant: str) -> dict[str, Any]:
    return json.loads((GOLDEN / variant / "config.json").read_text())


def golden_draws(variant: str) -> Drawn:
    names = ("z_normal", "goal_permutation", "goal_uniform", "next_action_noise", "actor_noise", "flow_x0", "flow_time")
    return Drawn(*(trace(variant).get(f"draw/{name}") for name in names))


def golden_batch(variant: str) -> dict[str, Tensor]:
    return {name: trace(variant)[name] for name in FIELDS}


class Step(TDJEPA):
    """With the draws of a trace."""

    variant: str

    def draw(self, batch: Any, rng: Rng) -> Drawn:
        return golden_draws(self.variant)


@pytest.mark.parametrize("variant", VARIANTS)
def test_forward(variant: str) -> None:
    """What is seen, drawn and predicted, all targets and every term of the losses."""
    module, theirs = TDJEPA.from_official(str(GOLDEN / variant / "checkpoint")), trace(variant)
    drawn = golden_draws(variant)
    seen = module.see(golden_batch(variant), drawn)
    task = module.tasks(seen, drawn)
    assert_close(task, theirs["z"], "tasks")
    latents = module.predict(seen, task, drawn)
    for name in ("phi", "psi") if variant != "symmetric" else ("phi",):
        each = latents.predictions[name]
        assert_close(latents.embeddings[name].values[:, 0], theirs[name], name)
        assert_close(each.prediction.transpose(0, 1), theirs[f"{name}_prediction"], f"prediction of {name}")
        assert_close(each.target[:, 1], theirs[f"td_target_{name}"], f"target of {name}")
    terms = module.loss(latents)
    assert_close(terms["loss"], theirs["metric/total_loss"][0], "loss")
    again = module.latents(golden_batch(variant), drawn)
    assert torch.equal(again.predictions["phi"].prediction, latents.predictions["phi"].prediction)
    for ours, metric in {"phi_td": "phi_tdjepa_loss", "phi_ortho": "phi_orth_loss"}.items():
        assert_close(terms[ours], theirs[f"metric/{metric}"][0], ours)


@pytest.mark.parametrize("variant", VARIANTS)
def test_update(variant: str) -> None:
    """Every gradient, every parameter after the step, ψ's moment, and then a task of rewards and its actions."""
    Step.variant, theirs = variant, trace(variant)
    module = Step.from_official(str(GOLDEN / variant / "checkpoint"))
    trainer = quiet_trainer(max_epochs=1, log_every_n_steps=1)
    trainer.fit(module, DataLoader([golden_batch(variant)], batch_size=None))
    found = dict(module.named_parameters())
    ours = {
        name: official.renamed(name_in_checkpoint(name)) for name in theirs if name.startswith(("grad/", "after_step/"))
    }
    gradients = {ours[name]: value for name, value in theirs.items() if name.startswith("grad/")}
    after = {ours[name]: value for name, value in theirs.items() if name.startswith("after_step/")}
    assert_close(module.task_moment, after.pop("task_moment"), "moment")
    assert found.keys() == after.keys()
    assert {name for name, value in found.items() if value.grad is not None} == gradients.keys()
    for name, value in gradients.items():
        assert_close(found[name].grad, value, f"gradient of {name}")
    for name, value in after.items():
        rounding = gradients[name].abs() <= 1e-5 * gradients[name].abs().max() if name in gradients else None
        assert_close(found[name], value, f"{name} after the step", rounding)
    for metric, term in {"total_loss": "loss", "actor_loss": "actor_loss", "q": "value"}.items():
        logged = trainer.callback_metrics[f"train/{term}"]
        assert_close(logged, theirs[f"metric/{metric}"][0], metric)
    task = module.infer_task(theirs["inference/next_observation"], theirs["inference/reward"])
    assert_close(task, theirs["inference/z"][0], "task")
    noise = theirs.get("draw/inference_noise")
    actions = module.act(theirs["inference/act_observation"], task, noise)
    assert_close(actions, theirs["inference/action"], "actions")


def name_in_checkpoint(name: str) -> str:
    """Of a name in a trace, that in the official checkpoint."""
    name = name.split("/", 1)[1].replace("/", ".")
    name = {"z_covariance": "z_cov"}.get(name, name).replace("phi_encoder", "phi_mlp_encoder")
    return "_" + name.replace("psi_encoder", "psi_mlp_encoder")


# --- What the traces do not have -------------------------------------------------------------------------------------


def small(**options: Any) -> TDJEPA:
    """Always with the same weights."""
    torch.manual_seed(0)
    return TDJEPA(**TINY_TD | options)


def test_orthonormality() -> None:
    """As the sum over all pairs of different samples."""
    embeddings = toys.numbers(1, 7, 3)
    products = embeddings @ embeddings.T
    apart = sum(float(products[i, j]) ** 2 for i in range(7) for j in range(7) if i != j) / (2 * 7 * 6)
    assert float(orthonormality(embeddings)) == pytest.approx(apart - float(embeddings.square().sum() / 7), rel=1e-5)
    # The identity is the least: √D times the axes, all of them alike often.
    best = orthonormality(3**0.5 * torch.eye(3).repeat(200, 1))
    assert best < orthonormality(3**0.5 * torch.nn.functional.normalize(toys.numbers(2, 600, 3).abs()))
    assert float(orthonormality(embeddings[:1])) == pytest.approx(-float(embeddings[0].square().sum()), rel=1e-5)


def test_batches_of_one() -> None:
    """Held out, a last batch may have one step alone; in training it says what to do."""
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(small(), DataLoader(toys.Rows(steps(8)), 4), DataLoader(toys.Rows(steps(5)), 4))
    assert all(trainer.callback_metrics[f"val/{name}"].isfinite() for name in ("loss", "phi_td", "phi_ortho"))
    with pytest.raises(ValueError, match=r"batch of one.*batch_size"):
        quiet_trainer(max_epochs=1).fit(small(), DataLoader(toys.Rows(steps(1)), 1))


def test_starting_from_weights(tmp_path: Path) -> None:
    """All networks, their teachers and ψ's moment are those of the checkpoint."""
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(small(), DataLoader(toys.Rows(steps(16)), 8))
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    torch.manual_seed(1)
    module = TDJEPA(**TINY_TD, weights=str(tmp_path / "it.ckpt"))
    assert difference(copies(module), copies(trainer.lightning_module))
    quiet_trainer(max_epochs=1, limit_train_batches=0).fit(module, DataLoader(toys.Rows(steps(16)), 8))
    for name, value in trainer.lightning_module.state_dict().items():
        assert torch.equal(module.state_dict()[name], value), name


def test_pessimism() -> None:
    heads = toys.numbers(1, 3, 5, 2)
    apart = ((heads[0] - heads[1]).abs() + (heads[0] - heads[2]).abs() + (heads[1] - heads[2]).abs()) / 3
    assert torch.allclose(pessimistic(heads, 0.7), heads.mean(0) - 0.7 * apart, atol=1e-6)
    batch, module, doubtful = steps(6), small(), small(predictor_pessimism=1.0, actor_pessimism=1.0)
    drawn = module.draw(batch, Rng(0, 6))
    certain, doubted = (each.latents(batch, drawn).predictions["phi"].target for each in (module, doubtful))
    assert not torch.allclose(certain[1:5], doubted[1:5])
    assert torch.equal(certain[[0, 5]], doubted[[0, 5]])  # after which nothing follows


def test_tanh() -> None:
    """As torch's, and so are its gradients, also of the second order, and far out."""
    values = torch.cat([torch.linspace(-9, 9, 999), torch.tensor([-1e4, 0.0, 1e4])]).requires_grad_()
    assert torch.allclose(Tanh()(values), values.tanh(), atol=2e-7)
    for order in (1, 2):
        ours, theirs = Tanh()(values), values.tanh()
        for _ in range(order):
            ours, theirs = (torch.autograd.grad(each.sum(), values, create_graph=True)[0] for each in (ours, theirs))
        assert torch.allclose(ours, theirs, atol=2e-6)


def test_behaviour_cloning() -> None:
    """The value over its size, and the distance to the data's actions; where that weighs a lot, these are learnt."""
    module, batch = small(bc_coeff=2.0), steps(6)
    drawn = module.draw(batch, Rng(0, 6))
    seen = module.see(batch, drawn)
    task = module.tasks(seen, drawn)
    terms = module.actor_loss(seen, task, drawn)
    phi = module.phi(batch.observation)
    action = module.policy(phi, task, drawn.action)
    values = (module.phi_predictor(phi, action, task) * task).sum(-1)
    expected = -values.mean() / values.abs().mean() + 2.0 * (action - batch.action).square().mean()
    assert_close(terms["actor_loss"], expected.detach(), "loss")


def test_noise_of_actions() -> None:
    """Clipped, as are actions; the gradient passes as if these were not."""
    module = small(actor_std=10.0, actor_clip=0.25)
    sees, task = toys.numbers(1, 4, 8).requires_grad_(), toys.numbers(2, 4, 6)
    mean = module.actor(sees, task)
    for sign in (1.0, -1.0):
        action = module.policy(sees, task, torch.full((4, 2), sign))
        assert torch.allclose(action, (mean + sign * 0.25).clamp(-1 + 1e-6, 1 - 1e-6))
    far = module.policy(10 * sees, task, torch.ones(4, 2))
    (gradient,) = torch.autograd.grad(far.sum(), module.actor.head[-1].bias)
    (plain,) = torch.autograd.grad(module.actor(10 * sees, task).sum(), module.actor.head[-1].bias)
    assert torch.allclose(gradient, plain)


def test_draws_are_normal_and_uniform() -> None:
    module = small()
    drawn = module.draw(None, Rng(3, 4000))
    for numbers in (drawn.task, drawn.next_action, drawn.action):
        assert kstest(numbers.flatten().numpy(), "norm").pvalue > 1e-3
    assert kstest(drawn.mix.flatten().numpy(), "uniform").pvalue > 1e-3
    assert sorted(drawn.goal.tolist()) == list(range(4000))
    seen = module.see(steps(4000), drawn)
    task = module.tasks(seen, drawn)
    assert torch.allclose(task.norm(dim=1), torch.tensor(6**0.5).expand(4000), atol=1e-4)
    goals = module.psi(steps(4000).next_observation)[drawn.goal]
    chosen = drawn.mix[:, 0] < 0.5
    assert torch.allclose(task[chosen], goals[chosen], atol=1e-5)
    assert 0.45 < float(chosen.float().mean()) < 0.55


def test_tasks_of_rewards_and_goals() -> None:
    """A reward that is a direction of ψ is that task; a goal is where ψ is."""
    module, states = small(scale_goals=True), toys.numbers(5, 50, 6)
    direction = to_sphere(toys.numbers(6, 1, 6))[0]
    rewards = module.psi(states) @ direction
    assert_close(module.infer_task(states, 3.0 * rewards.detach()), direction, "task")
    moment = module.psi(states).T @ module.psi(states) / 50
    module.task_moment.copy_(moment)
    goal = to_sphere(torch.linalg.solve(moment + 1e-6 * torch.eye(6), module.psi(states[:3]).T).T)
    assert_close(module.infer_goal(states[:3]), goal.detach(), "goals")
    assert_close(module.infer_goal(states[1]), goal[1].detach(), "goal")
    # The task of a reward of one for a state alone is that of the goal.
    one = torch.zeros(50)
    one[1] = 1.0
    assert torch.allclose(module.infer_task(states, one), goal[1], atol=1e-3)
    for rewards, message in ((torch.zeros(50), "zero"), (torch.full((50,), torch.nan), "finite"), (one[:9], "50")):
        with pytest.raises(ValueError, match=message):
            module.infer_task(states, rewards)
    with pytest.raises(ValueError, match=r"\[B, 6\].*\[3, 5\]"):
        module.act(torch.zeros(3, 5), direction)
    with pytest.raises(ValueError, match=r"actions \[B, 2\]"):
        module.latents(steps(4)._replace(action=torch.zeros(4, 3)))


def test_values_are_discounted_sums() -> None:
    """Of a chain of states that nothing can change, the predictor learns Σ γᵗ ψ, the closed form. 400 updates."""
    module = small(discount=0.5, predictor_dim=64, encoder_tau=1.0, predictor_tau=0.05, lr=3e-3, lr_phi=0.0, lr_psi=0.0)
    states = torch.eye(6)
    following = states.roll(-1, 0)
    last, number = torch.arange(6) == 4, 24 * 400
    place, action = torch.arange(number) % 6, toys.numbers(9, number, 2).tanh()
    rows = Steps(states[place], action, following[place], last[place], torch.zeros(number))
    quiet_trainer(max_epochs=1).fit(module, DataLoader(toys.Rows(rows), 24))
    psi = module.psi(following).detach()
    goes_on = 1.0 - last.float().unsqueeze(1)
    sums = psi.clone()
    for _ in range(40):
        sums = psi + 0.5 * goes_on * sums.roll(-1, 0)
    task = to_sphere(toys.numbers(3, 6, 6))
    predicted = module.phi_predictor(module.phi(states), torch.zeros(6, 2), task).mean(0)
    assert float((predicted.detach() - sums).norm() / sums.norm()) < 0.25
    assert float((predicted - psi).norm() / psi.norm()) > 0.4  # and not the next state's alone


@pytest.mark.parametrize("most", [0, 2])
def test_shifted_frames(most: int) -> None:
    """As cut out of the frames with repeated edges."""
    frames, uniform = (255 * toys.numbers(1, 5, 3, 8, 9).sigmoid()).to(torch.uint8), torch.rand(5, 2)
    found = shift_frames(frames, uniform, most)
    wide = torch.nn.functional.pad(frames.float(), (most,) * 4, mode="replicate")
    for number, (down, right) in enumerate((uniform * (2 * most + 1)).long().tolist()):
        expected = wide[number, :, down : down + 8, right : right + 9]
        assert torch.equal(found[number].float(), expected)


def test_frames() -> None:
    """Encoded once and shifted, in training; the encoder learns by what is predicted, and acting shifts nothing."""
    module = small(observation_dim=[3, 16, 16], actor_reads_phi=False, shift=2)
    batch = frame_steps(8)
    before = copy.deepcopy(module.frames.state_dict())
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, DataLoader(toys.Rows(batch), 8))
    assert difference(before, module.frames.state_dict())
    task = module.infer_task(batch.observation, torch.arange(8.0))
    actions = module.act(batch.observation, task)
    assert actions.shape == (8, 2)
    assert torch.equal(actions, module.act(batch.observation, task))
    assert_close(module.act(batch.observation[:3].float(), task), actions[:3].detach(), "actions of floats")
    drawn = module.draw(batch, Rng(1, 8))
    shifted = module.see(batch, drawn)
    still = module.see(batch, drawn._replace(shift=torch.full((8, 4), 0.5)))
    assert not torch.allclose(shifted.state, still.state)
    assert torch.allclose(still.state, module.frames(batch.observation), atol=1e-5)
    assert not shifted.next_state.requires_grad


def test_a_batch_that_is_not_finite(recwarn: Any) -> None:
    """Moves neither weights nor ψ's moment; the next one does."""
    module, batch = small(), steps(8)
    before = copies(module)
    wrong = batch._replace(observation=batch.observation.clone())
    wrong.observation[3, 2] = torch.nan
    quiet_trainer(max_epochs=1).fit(module, DataLoader([wrong], batch_size=None))
    assert not difference(before, copies(module))
    assert any("skipped" in str(each.message) for each in recwarn)
    quiet_trainer(max_epochs=1).fit(module, DataLoader([batch], batch_size=None))
    assert difference(before, copies(module))


def test_monitors(tmp_path: Path) -> None:
    """φ and ψ are watched by rank, by the eigenvalues of their covariance, and by how orthonormal they are."""
    steps_made: list[Any] = []
    record = LambdaCallback(on_train_batch_end=lambda trainer, module, outputs, *_: steps_made.append(outputs))
    trainer = quiet_trainer(tmp_path, max_epochs=1, callbacks=[record, CollapseMonitor(2)])
    trainer.fit(small(), DataLoader(toys.Rows(steps(16)), 8))
    logged = trainer.callback_metrics
    for name in ("phi", "psi"):
        seen = torch.cat([outputs["latents"].embeddings[name].values[:, 0] for outputs in steps_made])
        values = np.linalg.eigvalsh(np.cov(seen.double().numpy().T, bias=True))
        second = seen.double().numpy().T @ seen.double().numpy() / 16  # whose trace is D, as all are on a sphere
        expected = {
            "largest_eigenvalue": values[-1],
            "smallest_eigenvalue": values[0],
            "non_orthonormality": np.linalg.norm(second - np.eye(len(second))) / len(second) ** 0.5,
        }
        for reading, value in expected.items():
            assert float(logged[f"collapse/{name}/{reading}"]) == pytest.approx(value, rel=1e-4, abs=1e-6), reading
        assert 1 <= float(logged[f"collapse/{name}/rankme"]) <= 8
    assert {"train/grad_norm/0", "train/grad_norm/1", "train/value"} <= logged.keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"actor": "normal"}, "one of gaussian, flow"),
        ({"discount": 1.0}, "discount"),
        ({"goal_share": 1.5}, "goal_share"),
        ({"heads": 0}, "heads"),
        ({"phi_ortho": -1.0}, "phi_ortho"),
        ({"lr_psi": -1.0}, "lr_psi"),
        ({"encoder_tau": 2.0}, "encoder_tau"),
        ({"observation_dim": [3, 8, 8]}, "too small"),
        ({"observation_dim": [8, 8]}, "channels, rows"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**options)
    with pytest.raises(TypeError, match="discont"):
        small(discont=0.5)


def test_official_checkpoints_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        TDJEPA.from_official(str(tmp_path))
    shutil.copytree(GOLDEN / "flow" / "checkpoint", tmp_path / "it")
    (tmp_path / "it" / "config.json").write_text('{"name": "FBAgent"}')
    with pytest.raises(ValueError, match="FBAgent"):
        TDJEPA.from_official(str(tmp_path / "it"))
    module = TDJEPA.from_official(str(GOLDEN / "flow" / "checkpoint"), lr_psi=0.5)
    assert (module.hparams.lr_psi, module.hparams.lr_flow, module.hparams.actor) == (0.5, 0.004, "flow")
