"""The findings before a run: warnings, and errors that refuse it."""

import json
import os
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sftctl import jsonio
from sftctl.config.schema import DataConfig, RunConfig
from sftctl.data.loading.loader import longest_micro_batch
from sftctl.data.loading.microbatch import rounded_up
from sftctl.data.step_shape import step_shape
from sftctl.errors import CheckpointError, ConfigError, DataError
from sftctl.machine import Machine
from sftctl.model.fake import fake_model
from sftctl.runs.directory import shared_run_path
from sftctl.train.preflight.dry_run import RunPlan, plan_run
from sftctl.train.preflight.findings import (
    Finding,
    device_finding,
    loader_findings,
    memory_findings,
    rank_findings,
    refuse_errors,
)
from sftctl.train.preflight.memory import MemoryEstimate, estimate_memory
from sftctl.train.preflight.proposal import propose
from sftctl.train.run import run_training
from sftctl.train.stop import StopRequest
from sftctl.world import ALONE, start_world
from tests.toys.loaders import Toy
from tests.toys.ranks import run_ranks
from tests.toys.runs import toy_config


def findings(plan: RunPlan, subject: str) -> list[tuple[str, str, str | None]]:
    return [(f.level, f.what, f.fix) for f in plan.findings if f.subject == subject]


def test_a_good_run_has_only_good_findings(tmp_path: Path) -> None:
    plan = plan_run(toy_config(tmp_path))
    assert {finding.level for finding in plan.findings} == {"ok"}
    assert {finding.subject for finding in plan.findings} == {
        "fit",
        "rows",
        "device",
        "memory",
        "disk",
    }
    assert json.loads(jsonio.dump_pretty(plan.to_json()))["findings"][0]["level"] == "ok"


@pytest.mark.parametrize(
    ("overrides", "subject", "what", "fix"),
    [
        (
            {"optim__warmup_steps": 13},
            "schedule",
            "13 steps of warm-up in a run of 12: the peak is never reached",
            "lower optim.warmup_steps",
        ),
        (
            {"optim__learning_rate": 0.0},
            "schedule",
            "the learning rate is 0: no weight will change",
            "leave --learning-rate out for the usual one",
        ),
        (
            {"train__eval_interval": 1},
            "validation",
            "every 1 step, but there is no validation data",
            "data.val_fraction = 0.05 holds rows out; for a store: prepare-data --val-fraction",
        ),
        (
            {"train__batch_size": 23},
            "schedule",
            "a step takes 23 examples, an epoch has 22: one step per epoch",
            "lower --batch-size or --accumulation-steps",
        ),
        (
            {"train__dtype": "float16"},
            "device",
            "cpu with float16: few processors compute it faster than float32",
            "compare a few steps with --dtype float32",
        ),
        (
            {"data__num_workers": 1000},
            "loader",
            f"{len(os.sched_getaffinity(0))} usable cores for 1,000 loader processes per rank",
            "`sftctl bench-loader` finds the best number",
        ),
    ],
)
def test_what_is_unwise_is_a_warning_with_a_way_out(
    tmp_path: Path, overrides: dict[str, Any], subject: str, what: str, fix: str
) -> None:
    plan = plan_run(toy_config(tmp_path, **overrides))
    assert ("warning", what, fix) in findings(plan, subject)
    refuse_errors(plan.findings)


def test_a_warm_up_exactly_as_long_as_the_run_reaches_the_peak_in_the_last_step(
    tmp_path: Path,
) -> None:
    plan = plan_run(toy_config(tmp_path, optim__warmup_steps=12))
    assert findings(plan, "schedule") == []
    assert plan.learning_rates[-1] == (12, plan.config["optim"]["learning_rate"])
    longer = plan_run(toy_config(tmp_path, optim__warmup_steps=13))
    assert longer.learning_rates[-1][1] < plan.learning_rates[-1][1]


def test_a_batch_as_large_as_the_data_causes_no_warning(tmp_path: Path) -> None:
    assert findings(plan_run(toy_config(tmp_path, train__batch_size=22)), "schedule") == []


@pytest.mark.parametrize("is_changed", [False, True])
def test_data_rendered_with_another_template_than_the_models_is_a_warning(
    tmp_path: Path, is_changed: bool
) -> None:
    run_training(toy_config(tmp_path, "first", train__max_steps=1))
    final = tmp_path / "first/final"
    with StopRequest() as stop:
        store = propose(toy_config(tmp_path, model__name=str(final)), ALONE, stop).inputs.train
    if is_changed:
        (template,) = final.glob("chat_template.jinja")
        template.write_text(template.read_text() + "{# changed #}")
    config = toy_config(tmp_path, model__name=str(final), data__path=str(store.path))
    plan = plan_run(config)
    ((level, what, fix),) = findings(plan, "template")
    if not is_changed:
        assert (level, fix) == ("ok", None)
        return
    assert level == "warning"
    assert what == "the data was rendered with a template that is not the model's own"
    assert fix is not None and "prepare the data again" in fix


def test_too_few_open_files_for_the_loader_are_a_warning(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    try:
        plan = plan_run(toy_config(tmp_path, data__num_workers=30))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (
        "warning",
        "about 228 open files for 30 loader processes per rank, 200 are allowed",
        "raise the limit with `ulimit -n`",
    ) in findings(plan, "loader")


ROOMY = Machine(16, None, 64 << 20, 1024, 10**10)


def about_the_loader(machine: Machine, workers: int = 16) -> list[Finding]:
    config = RunConfig(data=DataConfig(num_workers=workers))
    shape = step_shape(config.train)
    return list(loader_findings(config, Toy(), shape, machine, ranks_here=1))


def test_batches_go_through_pipes_so_a_small_dev_shm_is_enough_for_the_loader() -> None:
    (finding,) = about_the_loader(replace(ROOMY, shm_free_bytes=1 << 20))
    assert (finding.level, finding.what) == ("ok", "16 loader processes per rank")
    (finding,) = about_the_loader(replace(ROOMY, shm_free_bytes=0))
    assert (finding.level, finding.what) == (
        "warning",
        "about 786.4 kB of /dev/shm for 16 loader processes per rank, 0 B are free",
    )


def test_as_many_loader_processes_as_cores_are_fine_one_more_is_a_warning() -> None:
    assert about_the_loader(ROOMY, workers=0) == []
    assert [finding.level for finding in about_the_loader(ROOMY, workers=16)] == ["ok"]
    assert [finding.what for finding in about_the_loader(ROOMY, workers=17)] == [
        "16 usable cores for 17 loader processes per rank"
    ]


def test_a_warning_is_shown_at_the_start_of_the_run_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_training(toy_config(tmp_path, optim__warmup_steps=13))
    assert capsys.readouterr().err.startswith(
        "warning: schedule: 13 steps of warm-up in a run of 12: the peak is never reached; lower"
    )


def huge_model(folder: Path) -> Path:
    """A directory that describes a model of 3 x 10^12 parameters; it holds no weights."""
    run_training(toy_config(folder, "first", train__max_steps=1))
    final = folder / "first/final"
    content = json.loads((final / "config.json").read_text())
    content |= {"hidden_size": 2**17, "intermediate_size": 2**22}
    (final / "config.json").write_text(json.dumps(content))
    (final / "model.safetensors").unlink()
    return final


def test_a_model_too_large_for_memory_is_refused_before_its_weights_are_read(
    tmp_path: Path,
) -> None:
    config = toy_config(tmp_path, model__name=str(huge_model(tmp_path)))
    with pytest.raises((ConfigError, CheckpointError)) as raised:
        run_training(config)
    message, hint = raised.value.message, raised.value.hint
    assert (
        message.startswith("memory: too little for the training of 3,298,8")
        and "weights, gradients" in message
    )
    assert "no space for checkpoints" in message  # every problem at once
    assert hint is not None and "--strategy fsdp" in hint and "--keep" in hint
    assert not (tmp_path / "run").exists()


def test_the_estimate_grows_with_the_micro_batch_and_shrinks_with_shards(tmp_path: Path) -> None:
    def memory(num_ranks: int = 1, **overrides: Any) -> tuple[int, int]:
        estimate = plan_run(toy_config(tmp_path, **overrides), None, num_ranks).memory
        assert estimate.activations_bytes is not None
        return estimate.certain_bytes, estimate.activations_bytes

    assert memory()[0] == 16 * plan_run(toy_config(tmp_path)).num_parameters
    # In bfloat16 the model has copies of the weights, and gradients of their size.
    assert memory(train__dtype="bfloat16")[0] == 20 * plan_run(toy_config(tmp_path)).num_parameters
    assert memory(train__micro_batch_tokens=512)[1] > memory()[1]
    assert memory(2, train__strategy="fsdp")[0] == memory(2)[0] // 2
    assert memory(train__reduction="exact")[0] == memory()[0] * 24 // 16


def test_the_total_of_the_estimate_is_in_the_json_document(tmp_path: Path) -> None:
    plan = plan_run(toy_config(tmp_path))
    memory = plan.to_json()["memory"]
    parts = ["weights", "gradients", "optimizer", "activations", "working", "save_copy", "process"]
    assert memory["total_bytes"] == sum(memory[f"{part}_bytes"] for part in parts)
    assert memory["total_bytes"] == plan.memory.total_bytes


def test_the_largest_micro_batch_is_the_one_with_most_tokens(tmp_path: Path) -> None:
    config = toy_config(tmp_path, train__micro_batch_tokens=1)  # every example alone
    with StopRequest() as stop:
        proposal = propose(config, ALONE, stop)
    memory = proposal.memory
    longest = int(proposal.inputs.train.lengths.max())
    assert (memory.rows, memory.row_tokens) == (1, rounded_up(longest))


def test_the_estimate_sees_the_micro_batches_of_training_also_on_cuda(tmp_path: Path) -> None:
    config = toy_config(tmp_path, train__activation_checkpointing=True)
    with StopRequest() as stop:
        proposal = propose(config, ALONE, stop)
    config, store = proposal.config, proposal.inputs.train
    fake = fake_model(config.model.name, proposal.inputs.tokenizer, ALONE.device)
    pretended = replace(fake, device=torch.device("cuda"))
    shape = step_shape(config.train)
    memory = estimate_memory(config, store, pretended, shape, available_bytes=10**9)
    largest = longest_micro_batch(store, shape)
    assert (memory.rows, memory.row_tokens) == largest.input_ids.shape
    assert memory.activations_bytes is not None
    assert memory.save_copy_bytes == memory.process_bytes == 0  # these are in the CPU's memory


def about_memory(available: int | None, activations: int | None = 100) -> Finding:
    """The finding about a rank that needs 400 bytes for its state, and 150 for the rest."""
    estimate = MemoryEstimate(100, 100, 200, activations, 30, 20, 2, 8, available)
    (finding,) = memory_findings(estimate, num_parameters=25)
    return finding


@pytest.mark.parametrize(
    ("available", "level", "fix"),
    [
        (550, "ok", None),
        (549, "warning", "lower --micro-batch-tokens; the update stays the same"),
        (400, "warning", "lower --micro-batch-tokens; the update stays the same"),
        (399, "error", "a smaller model, or --strategy fsdp over more ranks or nodes"),
    ],
)
def test_memory_is_an_error_only_if_not_even_the_state_fits(
    available: int, level: str, fix: str | None
) -> None:
    finding = about_memory(available)
    assert (finding.level, finding.fix) == (level, fix)
    assert finding.what == (
        "about 550 B at the largest micro-batch (8 tokens), within 25%; "
        f"{available} B are available"
    )
    assert (finding.error is not None) == (level == "error")


def test_unknown_memory_is_no_warning() -> None:
    finding = about_memory(None)
    assert finding.level == "ok" and finding.what.endswith("the free memory is unknown here")
    finding = about_memory(500, activations=None)
    assert finding.level == "ok"
    assert finding.what.startswith("450 B, and what a pass over 8 tokens keeps")


def test_one_error_is_raised_as_it_is() -> None:
    error = DataError("a is wrong")
    with pytest.raises(DataError) as raised:
        refuse_errors([Finding("error", "a", "…", None, error)])
    assert raised.value is error


def test_several_errors_are_one_with_all_of_them() -> None:
    first, second = DataError("a is wrong", "fix a"), ConfigError("b is wrong")
    bad = [Finding("error", "a", "…", None, first), Finding("error", "b", "…", None, second)]
    with pytest.raises(DataError) as raised:
        refuse_errors([Finding("ok", "c", "fine"), *bad])
    assert (raised.value.message, raised.value.hint) == ("a is wrong; b is wrong", "fix a")
    refuse_errors([Finding("ok", "c", "fine")])


def _share(folders: list[str]) -> str | None:
    with start_world("cpu") as world:
        os.chdir(folders[world.rank])
        try:
            shared_run_path(RunConfig(output_dir=Path("runs/x")), world)
        except ConfigError as error:
            return error.message
        return None


def test_a_run_directory_must_be_the_same_one_for_all_ranks(tmp_path: Path) -> None:
    here, elsewhere = tmp_path / "a", tmp_path / "b"
    here.mkdir()
    elsewhere.mkdir()
    assert run_ranks(2, _share, [str(here), str(here)]) == [None, None]
    refused = run_ranks(2, _share, [str(here), str(elsewhere)])
    assert refused == ["runs/x: what rank 0 writes there is not seen by rank 1"] * 2
    assert [*here.iterdir(), *elsewhere.iterdir()] == []


def test_the_pre_flight_draws_no_random_number_of_the_run(tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    config: RunConfig = toy_config(tmp_path)
    plan_run(config)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize(
    ("device", "dtype", "has_bfloat16", "level"),
    [
        ("cpu", "float32", False, "ok"),
        ("cpu", "bfloat16", True, "ok"),
        ("cpu", "bfloat16", False, "warning"),
        ("cpu", "bfloat16", None, "warning"),
        ("cpu", "float16", True, "warning"),
        ("cuda", "bfloat16", False, "ok"),
    ],
)
def test_bfloat16_on_a_cpu_is_a_warning_only_without_its_instructions(
    device: str, dtype: str, has_bfloat16: bool | None, level: str
) -> None:
    found = device_finding(device, dtype, has_bfloat16)
    assert found.level == level
    assert ("44 to 499 times slower" in found.what) is (has_bfloat16 is False and level != "ok")


def test_more_ranks_than_cores_are_a_warning_on_a_cpu() -> None:
    machine = replace(Machine.here(), usable_cores=2)
    (found,) = rank_findings(64, "cpu", machine)
    assert (
        str(found) == "ranks: 64 ranks on 2 usable cores: they wait for each other; "
        "--nproc-per-node 2"
    )
    assert [*rank_findings(2, "cpu", machine), *rank_findings(64, "cuda", machine)] == []
