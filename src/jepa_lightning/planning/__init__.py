"""Planners, which know a cost and no model, and the costs that world models give them."""

from jepa_lightning.planning.action_world import ActionWorld, Imagined
from jepa_lightning.planning.agent import Agent, load_agent
from jepa_lightning.planning.building import PUBLISHED_CEM, build_planner, policy_options
from jepa_lightning.planning.cem import CEM
from jepa_lightning.planning.costs import GoalCost, World, repeat_state, rollout
from jepa_lightning.planning.episodes import Outcome, Reference, play, wilson
from jepa_lightning.planning.gradient import GradientPlanner
from jepa_lightning.planning.mppi import MPPI
from jepa_lightning.planning.planner import Cost, Plan, Planner
from jepa_lightning.planning.policy import Policy, load_planner, policy_of
from jepa_lightning.planning.projections import Ball, Box, FixedAxes, Projection

__all__ = [
    "CEM",
    "MPPI",
    "PUBLISHED_CEM",
    "ActionWorld",
    "Agent",
    "Ball",
    "Box",
    "Cost",
    "FixedAxes",
    "GoalCost",
    "GradientPlanner",
    "Imagined",
    "Outcome",
    "Plan",
    "Planner",
    "Policy",
    "Projection",
    "Reference",
    "World",
    "build_planner",
    "load_agent",
    "load_planner",
    "play",
    "policy_of",
    "policy_options",
    "repeat_state",
    "rollout",
    "wilson",
]
