"""Planners: the optimum of closed forms, and the official ones on the draws that they made (`golden/*/planning`)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close
from safetensors.torch import load_file
from torch import Tensor

from jepa_lightning.planning import CEM, MPPI, Ball, Box, FixedAxes, GoalCost, GradientPlanner, Planner, rollout

GOLDEN = Path(__file__).parent / "golden"


def golden(system: str, name: str = "planning") -> dict[str, Tensor]:
    return load_file(GOLDEN / system / f"{name}.safetensors")


class Recorded:
    """A cost that keeps what it was asked, and what it answered."""

    def __init__(self, cost: Callable[[Tensor], Tensor]) -> None:
        self.cost, self.actions, self.costs = cost, [], []

    def __call__(self, actions: Tensor) -> Tensor:
        costs = self.cost(actions)
        self.actions.append(actions.detach().clone())
        self.costs.append(costs.detach())
        return costs


# --- Closed forms ----------------------------------------------------------------------------------------------------


class Linear:
    """`s' = A s + B a`, and the squared distance to a goal."""

    def __init__(self) -> None:
        self.a = torch.tensor([[1.0, 0.2, 0.0], [0.0, 0.9, 0.1], [0.1, 0.0, 0.8]])
        self.b = torch.tensor([[0.5, 0.0], [0.0, 1.0], [0.3, -0.4]])

    def start(self, observations: Tensor) -> Tensor:
        return observations

    def step(self, state: Tensor, action: Tensor) -> Tensor:
        return state @ self.a.T + action @ self.b.T

    def distance(self, state: Tensor, goal: Tensor) -> Tensor:
        return (state - goal).square().sum(-1)


def linear_quadratic(horizon: int, weight: float = 0.1) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor]:
    """A cost, the plans that minimise distance at the end plus `0.1 |a|²`, by least squares, and their costs.

    Args:
        horizon: of the plans.
        weight: of `|a|²` in the cost that is returned.
    """
    world, numbers = Linear(), torch.Generator().manual_seed(1)
    state, goal = (torch.randn(3, 3, generator=numbers) for _ in range(2))
    distance = GoalCost(world, state, goal)

    def cost(actions: Tensor) -> Tensor:
        return distance(actions) + weight * actions.square().sum((2, 3))

    powers = [torch.linalg.matrix_power(world.a, number) for number in range(horizon + 1)]
    effect = torch.cat([powers[horizon - 1 - step] @ world.b for step in range(horizon)], 1)
    gap = goal - state @ powers[horizon].T
    best = torch.linalg.solve(effect.T @ effect + 0.1 * torch.eye(2 * horizon), effect.T @ gap.T).T
    least = (gap - best @ effect.T).square().sum(1) + weight * best.square().sum(1)
    return cost, best.unflatten(1, (horizon, 2)), least


PLANNERS: dict[str, Callable[..., Planner]] = {
    "CEM": lambda *sizes, **options: CEM(*sizes, samples=300, elites=20, iterations=30, **options),
    "CEM with momentum": lambda *sizes, **options: CEM(
        *sizes, samples=300, elites=20, iterations=60, momentum=0.1, std_momentum=0.5, **options
    ),
    "MPPI": lambda *sizes, **options: MPPI(
        *sizes, samples=4000, iterations=30, temperature=0.02, std=0.1**0.5, **options
    ),
    "MPPI, fitted": lambda *sizes, **options: MPPI(
        *sizes, samples=400, elites=40, iterations=40, temperature=0.1, fitted_std=(0.03, 2.0), **options
    ),
    "gradient": lambda *sizes, **options: GradientPlanner(
        *sizes, samples=3, iterations=400, lr=0.03, weight_decay=0.0, patience=None, **options
    ),
}


@pytest.mark.parametrize("name", PLANNERS)
def test_finds_the_optimum(name: str) -> None:
    """Of a quadratic cost under linear dynamics, for three start states at once."""
    # MPPI stays near no action: what it adds to the cost comes to `λ / (2 std²) |a|²`, here just that 0.1.
    cost, best, least = linear_quadratic(horizon=4, weight=0.0 if name == "MPPI" else 0.1)
    torch.manual_seed(0)
    planner = PLANNERS[name](4, 2)
    plan = planner(cost, planner.start(3))
    assert (plan.actions - best).abs().max() < 0.05
    assert (plan.cost - least).abs().max() < 0.02 * (least.max() if name != "MPPI" else 1.0)
    assert torch.allclose(plan.cost, cost(plan.actions.unsqueeze(1))[:, 0])


@pytest.mark.parametrize("name", PLANNERS)
def test_stays_in_its_bounds(name: str) -> None:
    """The optimum lies outside: the plan is the nearest allowed one, here in each axis of its own."""
    target = torch.tensor([3.0, -0.2, 5.0])
    torch.manual_seed(0)
    planner = PLANNERS[name](2, 3, project=[Box(-1.0, 1.0), FixedAxes({2: 0.3}, first=1)])
    plan = planner(lambda actions: (actions - target).square().sum((2, 3)), planner.start(2))
    wanted = torch.tensor([[1.0, -0.2, 1.0], [1.0, -0.2, 0.3]]).expand(2, 2, 3)
    assert (plan.actions - wanted).abs().max() < 0.1
    assert (plan.actions <= 1).all()
    assert (plan.actions[:, 1, 2] == 0.3).all()


def test_receding_horizon() -> None:
    """Replanning after each step, from the shifted plan, gets to the goal and stays there."""
    world = Linear()
    world.a = torch.eye(3)
    state, goal = torch.zeros(2, 3), torch.tensor([[2.0, 0.0], [-1.0, 3.0]]) @ world.b.T
    torch.manual_seed(0)
    planner = CEM(5, 2, samples=200, elites=20, iterations=6, std=0.5, project=[Ball(1.0)])
    nominal = planner.start(2)
    distances = [world.distance(state, goal)]
    for _ in range(12):
        plan = planner(GoalCost(world, state, goal, last=None), nominal)
        assert (plan.actions.norm(dim=-1) <= 1 + 1e-5).all()
        state = world.step(state, plan.actions[:, 0])
        nominal = planner.later(plan.nominal, 1)
        distances.append(world.distance(state, goal))
    assert (distances[-1] < 0.01 * distances[0]).all()


def test_start_states_are_planned_for_on_their_own() -> None:
    """With the draws of each given, a batch of start states gives what they give one at a time."""
    cost, _, _ = linear_quadratic(horizon=3)
    for make in (PLANNERS["CEM"], PLANNERS["MPPI"], PLANNERS["MPPI, fitted"], _stopping):
        together = make(3, 2, noise=lambda iteration, shape: _noise(iteration, shape))
        plan = together(cost, together.start(3))
        for number in range(3):
            alone = make(3, 2, noise=lambda iteration, shape, n=number: _noise(iteration, (3, *shape[1:]))[n : n + 1])
            own = alone(lambda actions, n=number: cost(actions.expand(3, -1, -1, -1))[n : n + 1], alone.start(1))
            assert torch.allclose(plan.actions[number], own.actions[0], atol=1e-4)


def _noise(iteration: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(iteration))


def _stopping(*sizes: int, **options: Any) -> Planner:
    return GradientPlanner(*sizes, samples=3, iterations=200, lr=0.1, **options)


def test_rollout() -> None:
    world, state = Linear(), torch.randn(2, 3)
    actions = torch.randn(2, 4, 2)
    states = rollout(world, state, actions)
    for step in range(4):
        state = state @ world.a.T + actions[:, step] @ world.b.T
        assert torch.allclose(states[step], state)
    assert len(states) == 4


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: CEM(0, 2), "horizon"),
        (lambda: CEM(2, 2, samples=4, elites=5), "elites"),
        (lambda: CEM(2, 2, std=[1.0, 1.0, 1.0]), "one for each of the 2 axes"),
        (lambda: CEM(2, 2, momentum=1.0), "below 1"),
        (lambda: CEM(2, 2, iterations=0), "iterations"),
        (lambda: MPPI(2, 2, temperature=0.0), "temperature"),
        (lambda: MPPI(2, 2, std=0.0), "FixedAxes"),
        (lambda: MPPI(2, 2, elites=0), "elites"),
        (lambda: MPPI(2, 2, fitted_std=(2.0, 1.0)), "low to high"),
        (lambda: GradientPlanner(2, 2, patience=0), "patience"),
        (lambda: Box(1.0, -1.0), "empty"),
        (lambda: Ball(0.0), "radius"),
        (lambda: GoalCost(Linear(), None, None, last=0), "last"),
    ],
)
def test_refuses(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


# --- eb_jepa ---------------------------------------------------------------------------------------------------------


class EBJEPA:
    """Its Impala encoder and GRU; a plan costs the mean squared distances of all its states, the first one included."""

    def __init__(self) -> None:
        self.weights = golden("eb_jepa", "encoder")
        self.gru = torch.nn.GRUCell(2, 16).requires_grad_(False)
        given = golden("eb_jepa").items()
        self.gru.load_state_dict({k[4:-3]: v for k, v in given if k.startswith("gru/")})

    def _layer(self, name: str) -> tuple[Tensor, Tensor]:
        return self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]

    def start(self, observations: Tensor) -> Tensor:
        x = observations
        for stack in (f"stack_blocks.{number}" for number in range(3)):
            x = F.max_pool2d(F.conv2d(x, *self._layer(f"{stack}.initial_conv"), padding=1), 3, 2, 1)
            for block in range(2):
                branch = F.relu(F.conv2d(x, *self._layer(f"{stack}.blocks.{block}.conv1"), padding=1))
                x = F.relu(x + F.conv2d(branch, *self._layer(f"{stack}.blocks.{block}.conv2"), padding=1))
        return F.layer_norm(F.linear(x.flatten(1), *self._layer("mlp")), (16,), *self._layer("final_ln"))

    def step(self, state: Tensor, action: Tensor) -> Tensor:
        return F.layer_norm(self.gru(action, state), (16,), *self._layer("final_ln"))

    def distance(self, state: Tensor, goal: Tensor) -> Tensor:
        return (state - goal).square().mean(-1)


@pytest.mark.parametrize("name", ["cem", "mppi"])
def test_equals_eb_jepa(name: str) -> None:
    trace, world = golden("eb_jepa"), EBJEPA()
    state, goal = world.start(trace["obs_init"][:, :, 0]), world.start(trace["goal"][None])
    assert_close(goal, trace["goal_encoded"].flatten(1), "goal")
    future = GoalCost(world, state, goal, last=None)
    cost = Recorded(lambda actions: future(actions) + world.distance(state, goal).unsqueeze(1))
    noise = trace[f"{name}/noise"].transpose(1, 2).unsqueeze(1)
    options: dict[str, Any] = {"samples": 16, "elites": 4, "iterations": 4, "noise": lambda i, shape: noise[i]}
    planner: Planner
    if name == "cem":
        planner = CEM(5, 2, std=1.5, project=[Ball(2.45)], **options)
    else:
        # Its temperature is multiplied with the cost, and its norms are not applied.
        planner = MPPI(5, 2, temperature=1 / 0.005, std=2.0, fitted_std=(0.05, 2.0), **options)
    plan = planner(cost, planner.start(1))
    for iteration in range(4):
        theirs = trace[f"{name}/actions"][iteration].transpose(1, 2)
        assert_close(cost.actions[iteration][0], theirs, f"actions {iteration}")
        assert_close(cost.costs[iteration][0], trace[f"{name}/costs"][iteration], f"costs {iteration}")
    # Its MPPI returns one of the elites at random, which is no better than the mean.
    assert_close(plan.nominal[0], trace["cem/plan" if name == "cem" else "mppi/mean"], "plan")


# --- HWM -------------------------------------------------------------------------------------------------------------


class HWM(NamedTuple):
    """The published networks: a convolutional encoder, and a predictor of the next map for each of two levels."""

    weights: dict[str, Tensor]
    level: int

    def _conv(self, x: Tensor, name: str, **options: Any) -> Tensor:
        return F.conv2d(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], **options)

    def _norm(self, x: Tensor, name: str, width: int) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.relu(F.group_norm(x, x.shape[1] // width, weight, bias))

    def start(self, observations: tuple[Tensor, Tensor]) -> Tensor:
        x, velocity = observations
        for layer, stride, padding in ((0, 1, 0), (3, 2, 0), (6, 1, 0), (9, 1, 1)):
            name = f"level1.backbone.layers.1.{layer}"
            x = self._conv(x, name, stride=stride, padding=padding)
            x = self._norm(x, f"level1.backbone.layers.1.{layer + 1}", 4)
        x = self._conv(x, "level1.backbone.layers.1.12")
        return torch.cat([x, velocity[:, :, None, None].expand(-1, -1, *x.shape[2:])], 1)

    def step(self, state: Tensor, action: Tensor) -> Tensor:
        name, last = f"level{self.level}.predictor", 6 if self.level == 1 else 12
        if self.level == 2:
            for layer in ("0", "2"):
                weights = (self.weights[f"{name}.action_encoder.{layer}.{kind}"] for kind in ("weight", "bias"))
                action = F.linear(action if layer == "0" else F.relu(action), *weights)
        x = torch.cat([state, action[:, :, None, None].expand(-1, -1, *state.shape[2:])], 1)
        for layer in range(0, last, 3):
            x = self._conv(x, f"{name}.layers.{layer}", padding="same")
            x = self._norm(x, f"{name}.layers.{layer + 1}", 8)
        return state + self._conv(x, f"{name}.layers.{last}", padding="same")

    def distance(self, state: Tensor, goal: Tensor) -> Tensor:
        return (state[:, :16] - goal).square().mean((1, 2, 3))


def test_equals_hwm() -> None:
    """Two levels by MPPI, two calls: the first step of the upper plan is what the lower one aims at."""
    trace, settings = golden("hwm"), json.loads((GOLDEN / "hwm" / "planning.json").read_text())
    lower, upper = (HWM(golden("hwm", "networks"), level) for level in (1, 2))
    state = lower.start((trace["state"], trace["proprio_velocity"]))
    goal = lower.start((trace["goal"], trace["goal_proprio_velocity"]))[:, :16]
    assert_close(goal, trace["goal_representation"], "goal")
    low, high = trace["level2/min_bounds"] + 0.1, trace["level2/max_bounds"] - 0.1
    bounds = {1: Ball(1.0), 2: Box(low.tolist(), high.tolist())}
    nominal: dict[int, Tensor] = {}
    for call, horizon in enumerate(settings["plan_sizes"]):
        target = goal
        for level, world, size in ((2, upper, horizon), (1, lower, settings["level1_horizon"])):
            name, given = f"call{call}/level{level}", settings["mppi"][f"level{level}"]
            sigma, noise = given["noise_sigma"] ** 0.5, trace[f"{name}/noise"]
            planner = MPPI(
                size, noise.shape[-1], noise.shape[1], 1, given["lambda_"], sigma,
                project=[bounds[level]], noise=lambda i, shape, noise=noise: noise,
            )  # fmt: skip
            # Its first plan is drawn, and a plan that grows shorter has been executed so far.
            first = sigma * trace[f"level{level}/initial_noise"][:, :size] if call == 0 else None
            before = nominal.get(level)
            steps = 0 if before is None else before.shape[1] - size
            start = first if before is None else planner.later(before, steps)
            plan = planner(GoalCost(world, state, target, last=None), start)
            nominal[level] = plan.nominal
            scale, shift = (torch.tensor(settings[f"action_{kind}"]) for kind in ("std", "mean"))
            actions = plan.actions * scale + shift if level == 1 else plan.actions
            states = rollout(world, state, plan.nominal)
            target = states[0][:, :16]
            ours = {"nominal": plan.nominal, "actions": actions if level == 1 else plan.nominal}
            ours |= {"predicted_last": states[-1][:, :16]} if level == 1 else {}
            theirs = {key: trace[f"{name}/{key}"] for key in ours}
            if level == 2:
                ours["subgoal"], theirs["subgoal"] = target, trace[f"call{call}/subgoal"]
            for key, value in ours.items():
                # A cost's rounding, 1e-6, is divided by the temperature of 0.05 before it weighs the samples.
                assert (value - theirs[key]).abs().max() < 5e-5 * theirs[key].abs().max(), f"{name} {key}"


# --- H-JEPA ----------------------------------------------------------------------------------------------------------


class HJEPA(NamedTuple):
    """A level of its networks: predictions by one step of history, from latents `[B, 12]` and actions."""

    weights: dict[str, Tensor]
    level: int

    def _linear(self, x: Tensor, name: str, bias: bool = True) -> Tensor:
        name = f"{self.level - 1}.{name}"
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"] if bias else None)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        name = f"{self.level - 1}.{name}"
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def step(self, state: Tensor, action: Tensor) -> Tensor:
        if self.level == 1:
            kernel = f"{self.level - 1}.action_embed.patch_embed"
            action = F.linear(action, self.weights[f"{kernel}.weight"][..., 0], self.weights[f"{kernel}.bias"])
        condition = F.silu(self._linear(F.silu(self._linear(action, "action_embed.embed.0")), "action_embed.embed.2"))
        x = state + self.weights[f"{self.level - 1}.predictor.predictor.pos_embedding"][0, 0]
        for block in (f"predictor.predictor.transformer.layers.{number}" for number in range(2)):
            parts = self._linear(condition, f"{block}.adaLN_modulation.1").chunk(6, -1)
            for (shift, scale, gate), kind in ((parts[:3], "attn"), (parts[3:], "mlp")):
                y = F.layer_norm(x, (12,), eps=1e-6) * (1 + scale) + shift
                if kind == "attn":  # to itself alone
                    values = self._linear(self._norm(y, f"{block}.attn.norm"), f"{block}.attn.to_qkv", bias=False)
                    y = self._linear(values[..., -16:], f"{block}.attn.to_out.0")
                else:
                    y = self._linear(self._norm(y, f"{block}.mlp.net.0"), f"{block}.mlp.net.1")
                    y = self._linear(F.gelu(y), f"{block}.mlp.net.4")
                x = x + gate * y
        x = self._norm(x, "predictor.predictor.transformer.norm")
        if self.level == 1:
            x = self._linear(x, "predictor.predictor.transformer.output_proj")
        x = self._linear(x, "predictor.projector.net.0")
        name = f"{self.level - 1}.predictor.projector.net.1"
        statistics = (self.weights[f"{name}.{kind}"] for kind in ("running_mean", "running_var", "weight", "bias"))
        return self._linear(F.gelu(F.batch_norm(x, *statistics)), "predictor.projector.net.3")

    def distance(self, state: Tensor, goal: Tensor) -> Tensor:
        return (state - goal).square().sum(-1)


class Lifted(NamedTuple):
    """The first level, whose latents are compared in the second one."""

    world: HJEPA
    above: HJEPA

    def step(self, state: Tensor, action: Tensor) -> Tensor:
        return self.world.step(state, action)

    def distance(self, state: Tensor, goal: Tensor) -> Tensor:
        hidden = F.gelu(
            self.above._linear(self.above._norm(state, "encoder.encoder.input_norm"), "encoder.encoder.fc1")
        )
        return (self.above._linear(hidden, "encoder.encoder.fc2") - goal).square().sum(-1)


@pytest.mark.parametrize("run", ["call0/level2", "call0/level1", "skipped_upper/level1"])
def test_equals_hjepa(run: str) -> None:
    """Its gradient solver; a relative change of 1e-6 of the weights moves the actions by 4e-4."""
    trace, level = golden("hjepa"), int(run[-1])
    settings = json.loads((GOLDEN / "hjepa" / "planning.json").read_text())
    solver, recorded = settings["solver"][str(level)], settings["runs"][run.split("/")[0]]
    worlds = {number: HJEPA(golden("hjepa", "networks"), number) for number in (1, 2)}
    world = worlds[2] if level == 2 else Lifted(worlds[1], worlds[2])
    # A level 2 that has planned is compared with every other latent of level 1, one that is skipped with the last two.
    last = 2 if recorded["levels"][str(level)]["dense"] else 1
    cost = Recorded(GoalCost(world, trace[f"{run}/start_latent"][:, 0], trace[f"{run}/goal_latents"][:, 0], last))
    start = trace[f"{run}/initial_actions"]
    bounds = [Box(*(trace[f"action_prior/level2/{side}"].tolist() for side in ("low", "high")))] if level == 2 else []
    samples, horizon, size = start.shape[1:]
    planner = GradientPlanner(
        horizon, size, samples, solver["n_steps"], solver["lr"], project=bounds,
        noise=lambda iteration, shape: start - start[:, :1],
    )  # fmt: skip
    plan = planner(cost, start[:, 0])
    for number in range(2):
        theirs = trace[f"{run}/costs/{number}"]
        assert_close(cost.costs[0][number], theirs[0], f"{run} costs at the start")
        ours = torch.stack(cost.costs)[: len(theirs), number]
        assert (ours - theirs).abs().max() < 1e-3 * theirs.abs().max()
        # When all start states are done, one more pass has the costs of what was found.
        assert len(cost.costs) - 1 == max(recorded["levels"][str(level)]["iterations"])
    assert (plan.actions - trace[f"{run}/chosen_actions"]).abs().max() < 1e-3
    assert (
        plan.cost - torch.stack([trace[f"{run}/final_costs/{number}"].min() for number in range(2)])
    ).abs().max() < 1e-3
    assert (cost.actions[-1] - trace[f"{run}/final_actions"]).abs().max() < 1e-3
