"""Which stage an epoch belongs to, whatever ended early."""

import pytest

from medxfer.training.stages import StagePlan


def stages(plan: StagePlan) -> str:
    return "".join(plan.stage(epoch)[0] for epoch in range(plan.total_epochs))


@pytest.mark.parametrize(("head", "finetune"), [(2, 3), (0, 2), (3, 0)])
def test_planned_stages(head, finetune):
    assert stages(StagePlan(head, finetune)) == "h" * head + "f" * finetune


def test_ending_the_head_stage_early_moves_on():
    plan = StagePlan(5, 2)
    plan.end_stage(1)
    assert stages(plan) == "hhff"
    assert [plan.position(epoch) for epoch in range(4)] == [(0, 5), (1, 5), (0, 2), (1, 2)]


def test_ending_the_last_stage_early_ends_the_run():
    plan = StagePlan(1, 5)
    plan.end_stage(2)
    assert stages(plan) == "hff"


def test_state_survives():
    plan = StagePlan(5, 5)
    plan.end_stage(0)
    plan.end_stage(3)
    other = StagePlan(5, 5)
    other.load_state_dict(plan.state_dict())
    assert other == plan
    longer = StagePlan(5, 7)
    longer.load_state_dict(plan.state_dict())
    assert stages(longer) == "h" + 7 * "f"


def test_a_head_stage_that_was_the_whole_run_can_be_longer():
    plan = StagePlan(5, 0)
    plan.end_stage(1)
    longer = StagePlan(6, 0)
    longer.load_state_dict(plan.state_dict())
    assert stages(longer) == 6 * "h"
    same = StagePlan(5, 0)
    same.load_state_dict(plan.state_dict())
    assert stages(same) == "hh"
