"""Our names for the options of other tools, and for configuration keys that have no flag."""

from dataclasses import dataclass

PER_PROCESS = "over all ranks; elsewhere per process"
_NO_PADDING = "not needed: rows are laid end to end and never see each other (docs/migrating.md)"
_DATA_IS_LOCAL = "a file or folder on this machine"
_OWN_SHAPE = "--model takes a preset (minimind-3), or a directory with your own config.json"
_RESUME = "`sftctl resume RUN_DIR` continues a run"
_RANKS = "--nproc-per-node"


@dataclass(frozen=True, slots=True)
class Ours:
    """What replaces an option of another tool: a configuration key, or a sentence."""

    key: str | None = None
    words: str = ""  # with a key: a note about it
    value: str | None = None  # in place of the value that was typed


def ours(name: str) -> Ours | None:
    """The answer for an option of another tool: MiniMind, TRL, torchtune, axolotl, LLaMA-Factory.

    `name` is as it was typed: dashes and underscores mean the same.
    """
    return OTHERS.get(plain(name))


def plain(name: str) -> str:
    """`--Per-Device_Batch.Size` -> `per_device_batch_size`."""
    return name.lstrip("-").lower().replace("-", "_").replace(".", "_")


def _same(names: str, answer: Ours) -> dict[str, Ours]:
    return dict.fromkeys(names.split(), answer)


OTHERS: dict[str, Ours] = {
    **_same("lr optimizer_lr", Ours("optim.learning_rate")),
    **_same(
        "data_path dataset datasets dataset_name dataset_path dataset_source train_dataset "
        "train_data train_file train_files",
        Ours("data.path", _DATA_IS_LOCAL),
    ),
    **_same(
        "max_length max_seq_length cutoff_len sequence_len block_size model_max_length "
        "tokenizer_max_seq_len",
        Ours("data.max_seq_len"),
    ),
    **_same(
        "per_device_train_batch_size per_device_batch_size micro_batch_size "
        "per_gpu_train_batch_size train_batch_size global_batch_size",
        Ours("train.batch_size", PER_PROCESS),
    ),
    **_same(
        "gradient_accumulation_steps grad_accum gradient_accumulation",
        Ours("train.accumulation_steps"),
    ),
    **_same("num_train_epochs num_epochs n_epochs", Ours("train.epochs")),
    **_same("steps iters num_steps max_iters max_steps_per_epoch", Ours("train.max_steps")),
    **_same("lr_scheduler_type lr_scheduler scheduler lr_schedule", Ours("optim.schedule")),
    **_same("warmup num_warmup_steps lr_scheduler_num_warmup_steps", Ours("optim.warmup_steps")),
    **_same("adam_beta1 optimizer_beta1", Ours("optim.beta1")),
    **_same("adam_beta2 optimizer_beta2", Ours("optim.beta2")),
    **_same("adam_epsilon adam_eps epsilon", Ours("optim.eps")),
    **_same("wd optimizer_weight_decay", Ours("optim.weight_decay")),
    **_same("min_lr_rate min_lr_ratio", Ours("optim.min_lr_ratio")),
    **_same(
        "max_grad_norm clip_grad_norm gradient_clipping clip_grad max_norm",
        Ours("optim.grad_clip"),
    ),
    **_same("bf16 pure_bf16", Ours("train.dtype", value="bfloat16")),
    **_same("fp16", Ours("train.dtype", value="float16")),
    **_same("fp32", Ours("train.dtype", value="float32")),
    **_same("torch_dtype precision mixed_precision", Ours("train.dtype")),
    **_same("cpu use_cpu no_cuda", Ours("train.device", value="cpu")),
    **_same("gpu cuda", Ours("train.device", value="cuda")),
    **_same(
        "assistant_only_loss completion_only_loss train_on_inputs train_on_prompt "
        "train_on_input mask_history roles_to_train",
        Ours("data.train_on", "assistant (the default), last or all", value="assistant"),
    ),
    **_same("chat_template_path template jinja", Ours("data.chat_template", value="FILE")),
    **_same(
        "packing padding_free sample_packing neat_packing packed dataset_packed pack "
        "group_by_length pad_to_sequence_len pad_to_max_length eval_packing",
        Ours(words=_NO_PADDING),
    ),
    **_same("logging_steps log_every_n_steps logging_interval", Ours("tracking.log_interval")),
    **_same("save_steps save_every_n_steps saves_per_epoch", Ours("checkpoint.save_interval")),
    **_same("eval_steps evals_per_epoch", Ours("train.eval_interval")),
    **_same("eval_strategy evaluation_strategy do_eval", Ours("train.eval_interval", value="N")),
    **_same("save_strategy", Ours("checkpoint.save_interval", value="N")),
    **_same("save_total_limit keep_last_n_checkpoints", Ours("checkpoint.keep")),
    **_same("dataloader_num_workers workers", Ours("data.num_workers")),
    **_same("dataloader_pin_memory", Ours("data.pin_memory", value="on")),
    **_same("dataloader_prefetch_factor", Ours("data.prefetch_factor")),
    **_same("dataloader_persistent_workers", Ours("data.persistent_workers", value="true")),
    **_same("val_size val_set_size test_size validation_split", Ours("data.val_fraction")),
    **_same(
        "model_name_or_path base_model model_id model_name model_path checkpoint_dir "
        "checkpointer_checkpoint_dir load_from",
        Ours("model.name"),
    ),
    **_same("from_weight", Ours("model.name", "a directory, or MiniMind's .pth file")),
    **_same("tokenizer_name tokenizer_name_or_path tokenizer_path", Ours("model.tokenizer")),
    **_same(
        "save_dir save_weight out out_dir output save_path run_name logging_dir",
        Ours("output_dir", "one directory a run"),
    ),
    **_same(
        "gradient_checkpointing enable_activation_checkpointing",
        Ours("train.activation_checkpointing", value="true"),
    ),
    **_same("torch_compile use_compile", Ours("train.compile", value="true")),
    **_same("use_wandb report_to metric_logger", Ours("tracking.wandb", value="true")),
    **_same("ddp_timeout", Ours("train.collective_timeout_s")),
    **_same("deepspeed fsdp fsdp_config accelerator", Ours("train.strategy", value="fsdp")),
    **_same("use_moe", Ours("model.name", value="minimind-3-moe")),
    **_same(
        "hidden_size num_hidden_layers num_attention_heads n_layers n_embd dim",
        Ours(words=_OWN_SHAPE),
    ),
    **_same(
        "resume from_resume resume_from_checkpoint resume_from auto_resume_from_checkpoints "
        "resume_checkpoint",
        Ours(words=_RESUME),
    ),
    **_same("n_gpu gpus num_gpus nproc nprocs num_processes devices", Ours(words=_RANKS)),
    **_same("config config_file", Ours(words="the file is an argument: `sftctl train RUN.toml`")),
    **_same(
        "optimizer optim",
        Ours(words="AdamW is the only optimizer; [optim] in RUN.toml has its settings"),
    ),
    **_same("do_train stage", Ours(words="leave it out: `sftctl train` does nothing else")),
    **_same(
        "overwrite_output_dir overwrite",
        Ours(words="a run is never overwritten: choose another --output-dir"),
    ),
    **_same(
        "warmup_ratio",
        Ours("optim.warmup_steps", "in steps: `sftctl train --dry-run` shows how many there are",
             value="N"),
    ),
    **_same(
        "push_to_hub hub_model_id hub_token",
        Ours(words="nothing is uploaded; `sftctl export` writes the directory to upload"),
    ),
    **_same("lora_r lora_rank r", Ours("adapter.rank")),
    **_same("lora_alpha", Ours("adapter.alpha")),
    **_same("lora_dropout", Ours("adapter.dropout")),
    **_same("lora_target lora_target_modules target_modules", Ours("adapter.targets")),
    **_same("use_peft use_lora finetuning_type peft_type", Ours("adapter.lora", value="true")),
    **_same("lora_modules_to_save", Ours("adapter.modules_to_save")),
    **_same("plot_loss", Ours(words="`sftctl report RUN_DIR` draws the curves")),
    **_same(
        "dataset_num_proc preprocessing_num_workers",
        Ours(words="`sftctl prepare-data --workers N`; by default one a core"),
    ),
}  # fmt: skip
