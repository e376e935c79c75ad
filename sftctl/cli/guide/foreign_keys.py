"""Options of other tools for which sftctl has a configuration key.

The tools are MiniMind, TRL (with the TrainingArguments of transformers), torchtune, axolotl,
LLaMA-Factory, Unsloth and LitGPT. docs/migrating.md lists the same options.
"""

from sftctl.cli.guide.foreign import Ours, same, switch

_PER_PROCESS = "counts all ranks, while other tools count one process"
_DATA_IS_LOCAL = "a file or folder on this machine"
_TRAIN_ON = "the default is assistant; other values are last and all"
_LEAVE_OUT = Ours(words="leave it out: this is the default")
_NO_OFFLOADING = "activations are not moved to the CPU, but computed again"
_IN_STEPS = "a number of steps: `sftctl train --dry-run` shows the steps of the run"
_GROUPS = Ours(words="[optim.groups] in RUN.toml sets a factor of the learning rate for parameters")

_DATA: dict[str, Ours] = {
    **same(
        "data_path dataset datasets dataset_name dataset_path dataset_source train_dataset "
        "train_data train_file train_files data_files json_path",
        Ours("data.path", _DATA_IS_LOCAL),
    ),
    **same(
        "max_length max_seq_length cutoff_len sequence_len block_size model_max_length "
        "tokenizer_max_seq_len",
        Ours("data.max_seq_len"),
    ),
    **same("truncation_mode", Ours("data.overflow", "or set split or drop", "truncate")),
    **same(
        "assistant_only_loss completion_only_loss mask_prompt train_on_responses_only",
        switch("data.train_on", "assistant", "all", _TRAIN_ON),
    ),
    **same(
        "train_on_inputs train_on_input train_on_prompt",
        switch("data.train_on", "all", "assistant", _TRAIN_ON),
    ),
    **same("mask_history", switch("data.train_on", "last", "assistant", _TRAIN_ON)),
    **same("roles_to_train", Ours("data.train_on", _TRAIN_ON, "assistant")),
    **same("chat_template_path chat_template_jinja", Ours("data.chat_template")),
    **same("jinja", Ours("data.chat_template", value="FILE")),
    **same("enable_thinking", Ours("data.template_options", value="{enable_thinking={}}")),
    **same(
        "dataset_text_field text_column",
        Ours("data.columns", "every token is trained", "text={}", ("data.format", "text"),
             by_value={"text": Ours("data.format", "every token is trained", "text")}),
    ),
    **same(
        "field_messages conversation_column message_property_mappings",
        Ours("data.columns", value="messages={}"),
    ),
    **same("column_map", Ours("data.columns", "sftctl's key = your column", "prompt=NAME")),
    **same("val_size val_set_size test_size validation_split val_split_fraction test_split_size",
           Ours("data.val_fraction")),
    **same("dataloader_num_workers workers", Ours("data.num_workers")),
    **same("dataloader_pin_memory", switch("data.pin_memory", "on", "off")),
    **same("dataloader_prefetch_factor", Ours("data.prefetch_factor")),
    **same("dataloader_persistent_workers", switch("data.persistent_workers")),
}  # fmt: skip

_OPTIM: dict[str, Ours] = {
    **same("lr optimizer_lr", Ours("optim.learning_rate")),
    **same("lr_scheduler_type lr_scheduler scheduler lr_schedule", Ours("optim.schedule")),
    **same(
        "warmup num_warmup_steps lr_scheduler_num_warmup_steps lr_warmup_steps",
        Ours("optim.warmup_steps"),
    ),
    **same("warmup_ratio lr_warmup_fraction", Ours("optim.warmup_steps", _IN_STEPS, "N")),
    **same("adam_beta1 optimizer_beta1", Ours("optim.beta1")),
    **same("adam_beta2 optimizer_beta2", Ours("optim.beta2")),
    **same("adam_epsilon adam_eps epsilon", Ours("optim.eps")),
    **same("wd optimizer_weight_decay", Ours("optim.weight_decay")),
    **same("min_lr_rate min_lr_ratio cosine_min_lr_ratio", Ours("optim.min_lr_ratio")),
    **same("min_lr", Ours("optim.min_lr_ratio", "a fraction of the peak rate", "N")),
    **same(
        "max_grad_norm clip_grad_norm gradient_clipping clip_grad max_norm",
        Ours("optim.grad_clip"),
    ),
    **same("loraplus_lr_ratio embedding_lr embedding_lr_scale lr_groups", _GROUPS),
}

_TRAIN: dict[str, Ours] = {
    **same(
        "per_device_train_batch_size per_device_batch_size micro_batch_size "
        "per_gpu_train_batch_size train_batch_size global_batch_size",
        Ours("train.batch_size", _PER_PROCESS),
    ),
    **same("auto_find_batch_size", switch("train.micro_batch_tokens", "auto", "1024")),
    **same(
        "gradient_accumulation_steps grad_accum gradient_accumulation",
        Ours("train.accumulation_steps"),
    ),
    **same("num_train_epochs num_epochs n_epochs", Ours("train.epochs")),
    **same("steps iters num_steps max_iters", Ours("train.max_steps")),
    **same("max_steps_per_epoch", Ours("train.max_steps", "of the complete run")),
    **same("bf16 bfloat16 pure_bf16", switch("train.dtype", "bfloat16", "float32")),
    **same("fp16 float16", switch("train.dtype", "float16", "float32")),
    **same("fp32 float32", switch("train.dtype", "float32", "auto")),
    **same(
        "torch_dtype precision mixed_precision",
        Ours("train.dtype", by_value={
            "off": Ours("train.dtype", value="float32"),
            "32-true": Ours("train.dtype", value="float32"),
            **same("bf16-true bf16-mixed", Ours("train.dtype", value="bfloat16")),
            **same("16-true 16-mixed", Ours("train.dtype", value="float16")),
        }),
    ),
    **same("cpu use_cpu no_cuda", switch("train.device", "cpu", "auto")),
    **same("gpu cuda", switch("train.device", "cuda", "cpu")),
    **same("eval_steps run_val_every_n_steps", Ours("train.eval_interval")),
    **same("evals_per_epoch", Ours("train.eval_interval", _IN_STEPS, "N")),
    **same("eval_strategy evaluation_strategy do_eval", switch("train.eval_interval", "N", "0")),
    **same("early_stopping_patience early_stopping_steps",
           Ours("train.patience", "a number of evaluations")),
    **same("early_stopping_threshold", Ours("train.min_delta")),
    **same("load_best_model_at_end", switch("train.final", "best", "last")),
    **same("metric_for_best_model", Ours("evaluation.best", "loss or token_accuracy", "loss")),
    **same(
        "gradient_checkpointing enable_activation_checkpointing use_gradient_checkpointing",
        switch("train.activation_checkpointing"),
    ),
    **same("disable_gradient_checkpointing",
           switch("train.activation_checkpointing", "false", "true")),
    **same(
        "activation_offloading enable_activation_offloading",
        Ours("train.activation_checkpointing", _NO_OFFLOADING, "true",
             by_value={"off": _LEAVE_OUT}),
    ),
    **same("torch_compile use_compile", switch("train.compile")),
    **same("ddp_timeout", Ours("train.collective_timeout_s")),
    **same("deepspeed fsdp fsdp_config accelerator", switch("train.strategy", "fsdp", "ddp")),
    **same("random_state data_seed", Ours("train.seed")),
    **same("unfrozen_parameters", Ours("train.train_only")),
    **same("freeze_trainable_layers",
           Ours("train.train_only", "the last layers", "layers[-{}:]")),
}  # fmt: skip

_ADAPTER: dict[str, Ours] = {
    **same("lora_r lora_rank r", Ours("adapter.rank")),
    **same("lora_alpha", Ours("adapter.alpha")),
    **same("lora_dropout", Ours("adapter.dropout")),
    **same(
        "lora_target lora_target_modules target_modules lora_attn_modules",
        Ours("adapter.targets", by_value=same(
            "all all-linear", Ours(words="leave it out: the default is every linear layer"))),
    ),
    **same("use_peft use_lora peft_type", switch("adapter.lora")),
    **same("full_finetuning", switch("adapter.lora", "false", "true")),
    **same(
        "finetuning_type",
        Ours("adapter.lora", value="true", by_value={
            "full": Ours("adapter.lora", value="false"),
            "freeze": Ours("train.train_only", "the last two layers", "layers[-2:]"),
        }),
    ),
    **same(
        "load_in_4bit qlora use_qlora quantization_bit quantize_base quantize",
        Ours("adapter.quantize", value="nf4", by_value={"off": _LEAVE_OUT}),
    ),
    **same(
        "load_in_8bit",
        Ours("adapter.quantize", "only 4 bits, not 8", "nf4", by_value={"off": _LEAVE_OUT}),
    ),
    **same("adapter_name_or_path lora_model_dir", Ours("adapter.start")),
    **same("lora_modules_to_save additional_target", Ours("adapter.modules_to_save")),
    **same("peft_use_dora", switch("adapter.use_dora")),
    **same("peft_use_rslora", switch("adapter.use_rslora")),
}  # fmt: skip

_REST: dict[str, Ours] = {
    **same(
        "model_name_or_path base_model model_id model_name model_path checkpoint_dir "
        "checkpointer_checkpoint_dir load_from",
        Ours("model.name"),
    ),
    **same("from_weight", Ours("model.name", "a directory, or a .pth file of MiniMind")),
    **same("use_moe", switch("model.name", "minimind-3-moe", "minimind-3")),
    **same("tokenizer_name tokenizer_name_or_path tokenizer_path tokenizer_config",
           Ours("model.tokenizer")),
    **same("tokens add_tokens add_special_tokens", Ours("model.new_tokens")),
    **same("logging_steps log_every_n_steps logging_interval", Ours("tracking.log_interval")),
    **same("save_steps save_every_n_steps", Ours("checkpoint.save_interval")),
    **same("saves_per_epoch", Ours("checkpoint.save_interval", _IN_STEPS, "N")),
    **same("save_strategy", switch("checkpoint.save_interval", "N", "0")),
    **same("save_total_limit keep_last_n_checkpoints", Ours("checkpoint.keep")),
    **same(
        "save_dir save_weight lora_name out out_dir output save_path run_name logging_dir",
        Ours("output_dir", "one directory for each run"),
    ),
    **same(
        "use_wandb",
        Ours("tracking.wandb", "MiniMind logs to SwanLab: tracking.trackers = swanlab", "true",
             by_value={"off": Ours("tracking.wandb", value="false")}),
    ),
    **same("evaluate_example", Ours("tracking.samples", value="N")),
    **same("metric_logger", switch("tracking.wandb")),
    **same("swanlab_project trackio_project", Ours("tracking.wandb_project")),
    **same("use_swanlab", Ours("tracking.trackers", value="swanlab",
                               by_value={"off": _LEAVE_OUT})),
    **same("use_tensorboard", Ours("tracking.trackers", value="tensorboard",
                                   by_value={"off": _LEAVE_OUT})),
    **same(
        "report_to logger_name",
        Ours("tracking.trackers", "one of wandb, tensorboard, trackio, swanlab",
             by_value={"off": _LEAVE_OUT, "csv": Ours(words="metrics.jsonl is always written")}
             | same("wandb tensorboard trackio swanlab", Ours("tracking.trackers"))),
    ),
}  # fmt: skip

KEYS: dict[str, Ours] = _DATA | _OPTIM | _TRAIN | _ADAPTER | _REST
