"""Our names for the options of other tools, and for configuration keys that have no flag."""

from collections.abc import Mapping
from dataclasses import dataclass, field

PER_PROCESS = "over all ranks, elsewhere per process"
_NO_PADDING = "not needed: rows are laid end to end and never see each other (docs/migrating.md)"
_DATA_IS_LOCAL = "a file or folder on this machine"
_OWN_SHAPE = "--model takes a preset (minimind-3), or a directory with your own config.json"
_RESUME = "`sftctl resume RUN_DIR` continues a run"
_RANKS = "--nproc-per-node"
_TRAIN_ON = "by default assistant, else last or all"
_LEAVE_OUT = "leave it out: that is the default"
_OFF = frozenset({"false", "no", "off", "none", "null", "0", "disabled"})


@dataclass(frozen=True, slots=True)
class Ours:
    """What replaces an option of another tool: a configuration key, or a sentence."""

    key: str | None = None
    words: str = ""  # with a key: a note about it
    value: str | None = None  # in place of the value that was typed; {} stands for the typed value
    also: tuple[str, str] | None = None  # a key and its value that are needed as well
    by_value: Mapping[str, "Ours"] = field(default_factory=dict)  # "off": false, no, none, 0 …

    def for_value(self, typed: str) -> "Ours":
        """The answer if `typed` was given as the value; empty: none was."""
        word = typed.lower()
        return self.by_value.get("off" if is_off(word) else word, self)


def ours(name: str) -> Ours | None:
    """The answer for an option of another tool: MiniMind, TRL, torchtune, axolotl, LLaMA-Factory.

    `name` is as it was typed: dashes and underscores mean the same.
    """
    return OTHERS.get(plain(name))


def plain(name: str) -> str:
    """`--Per-Device_Batch.Size` -> `per_device_batch_size`."""
    return name.lstrip("-").lower().replace("-", "_").replace(".", "_")


def is_off(value: str) -> bool:
    """Whether a value turns something off."""
    return value.lower() in _OFF


def _switch(key: str, on: str = "true", off: str = "false", words: str = "") -> Ours:
    return Ours(key, words, on, by_value={"off": Ours(key, words, off)})


def _same(names: str, answer: Ours) -> dict[str, Ours]:
    return dict.fromkeys(names.split(), answer)


_TARGETS = Ours(
    "adapter.targets",
    by_value=_same("all all-linear", Ours(words="leave it out: every linear layer is the default")),
)

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
    **_same("bf16 pure_bf16", _switch("train.dtype", "bfloat16", "float32")),
    **_same("fp16", _switch("train.dtype", "float16", "float32")),
    **_same("fp32", _switch("train.dtype", "float32", "auto")),
    **_same(
        "torch_dtype precision mixed_precision",
        Ours("train.dtype", by_value={"off": Ours("train.dtype", value="float32")}),
    ),
    **_same("cpu use_cpu no_cuda", _switch("train.device", "cpu", "auto")),
    **_same("gpu cuda", _switch("train.device", "cuda", "cpu")),
    **_same(
        "assistant_only_loss completion_only_loss",
        _switch("data.train_on", "assistant", "all", _TRAIN_ON),
    ),
    **_same(
        "train_on_inputs train_on_input train_on_prompt",
        _switch("data.train_on", "all", "assistant", _TRAIN_ON),
    ),
    **_same("mask_history", _switch("data.train_on", "last", "assistant", _TRAIN_ON)),
    **_same("roles_to_train", Ours("data.train_on", _TRAIN_ON, "assistant")),
    **_same("chat_template_path", Ours("data.chat_template")),
    **_same("jinja", Ours("data.chat_template", value="FILE")),
    **_same(
        "template",
        Ours(words="the model's own template is taken; --chat-template FILE takes another"),
    ),
    **_same(
        "dataset_text_field text_column",
        Ours("data.columns", "every token is trained", "text={}", ("data.format", "text"),
             by_value={"text": Ours("data.format", "every token is trained", "text")}),
    ),
    **_same(
        "validation_file validation_data eval_file eval_dataset val_file eval_data_path",
        Ours(words="`sftctl prepare-data FILE --val-input FILE`, then train on the store that it "
             "writes"),
    ),
    **_same(
        "eos_token",
        Ours(words="not needed: the chat template ends a turn, and that token is trained"),
    ),
    **_same(
        "packing padding_free sample_packing neat_packing packed dataset_packed pack "
        "group_by_length pad_to_sequence_len pad_to_max_length eval_packing",
        Ours(words=_NO_PADDING),
    ),
    **_same("logging_steps log_every_n_steps logging_interval", Ours("tracking.log_interval")),
    **_same("save_steps save_every_n_steps saves_per_epoch", Ours("checkpoint.save_interval")),
    **_same("eval_steps evals_per_epoch", Ours("train.eval_interval")),
    **_same("eval_strategy evaluation_strategy do_eval", _switch("train.eval_interval", "N", "0")),
    **_same("save_strategy", _switch("checkpoint.save_interval", "N", "0")),
    **_same("save_total_limit keep_last_n_checkpoints", Ours("checkpoint.keep")),
    **_same("dataloader_num_workers workers", Ours("data.num_workers")),
    **_same("dataloader_pin_memory", _switch("data.pin_memory", "on", "off")),
    **_same("dataloader_prefetch_factor", Ours("data.prefetch_factor")),
    **_same("dataloader_persistent_workers", _switch("data.persistent_workers")),
    **_same("val_size val_set_size test_size validation_split", Ours("data.val_fraction")),
    **_same(
        "model_name_or_path base_model model_id model_name model_path checkpoint_dir "
        "checkpointer_checkpoint_dir load_from",
        Ours("model.name"),
    ),
    **_same("from_weight", Ours("model.name", "a directory, or a .pth file of MiniMind")),
    **_same("tokenizer_name tokenizer_name_or_path tokenizer_path", Ours("model.tokenizer")),
    **_same(
        "save_dir save_weight out out_dir output save_path run_name logging_dir",
        Ours("output_dir", "one directory a run"),
    ),
    **_same(
        "gradient_checkpointing enable_activation_checkpointing",
        _switch("train.activation_checkpointing"),
    ),
    **_same("torch_compile use_compile", _switch("train.compile")),
    **_same("use_wandb metric_logger", _switch("tracking.wandb")),
    **_same(
        "report_to",
        Ours("tracking.trackers", "wandb, tensorboard, trackio and swanlab are known",
             by_value={"off": Ours(words=_LEAVE_OUT)}
             | {name: Ours("tracking.trackers")
                for name in ("wandb", "tensorboard", "trackio", "swanlab")}),
    ),
    **_same("ddp_timeout", Ours("train.collective_timeout_s")),
    **_same("deepspeed fsdp fsdp_config accelerator", _switch("train.strategy", "fsdp", "ddp")),
    **_same("use_moe", _switch("model.name", "minimind-3-moe", "minimind-3")),
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
    **_same(
        "ddp",
        Ours(words="leave it out: --nproc-per-node N starts N ranks"),
    ),
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
    **_same("lora_target lora_target_modules target_modules", _TARGETS),
    **_same("use_peft use_lora peft_type", _switch("adapter.lora")),
    **_same(
        "finetuning_type",
        Ours("adapter.lora", value="true", by_value={"full": Ours("adapter.lora", value="false")}),
    ),
    **_same(
        "load_in_4bit qlora use_qlora",
        Ours("adapter.quantize", value="nf4", by_value={"off": Ours(words=_LEAVE_OUT)}),
    ),
    **_same(
        "load_in_8bit",
        Ours("adapter.quantize", "there are 4 bits, not 8", "nf4",
             by_value={"off": Ours(words=_LEAVE_OUT)}),
    ),
    **_same(
        "attn_implementation flash_attention flash_attn sdp_attention use_flash_attn",
        Ours(words="leave it out: the attention is chosen by the device"),
    ),
    **_same(
        "use_liger_kernel use_liger enable_liger_kernel",
        Ours(words="leave it out: the loss is computed in chunks as it is"),
    ),
    **_same(
        "neftune_noise_alpha noisy_embedding_alpha label_smoothing_factor loss_type",
        Ours(words="leave it out: the loss is always plain cross-entropy"),
    ),
    **_same("adapter_name_or_path", Ours("adapter.start")),
    **_same("lora_modules_to_save", Ours("adapter.modules_to_save")),
    **_same("plot_loss", Ours(words="`sftctl report RUN_DIR` draws the curves")),
    **_same(
        "dataset_num_proc preprocessing_num_workers",
        Ours(words="`sftctl prepare-data --workers N`; by default one a core"),
    ),
}  # fmt: skip
