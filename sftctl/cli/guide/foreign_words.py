"""Options of other tools for which sftctl has no setting. Each is answered with a sentence."""

from sftctl.cli.guide.foreign import Ours, same


def _answers(table: dict[str, str]) -> dict[str, Ours]:
    """Convert (sentence -> names) to (name -> answer)."""
    return {
        name: answer
        for sentence, names in table.items()
        for name, answer in same(names, Ours(words=sentence)).items()
    }


_NOT_NEEDED = {
    "not needed: rows are joined without padding, and never affect each other (docs/migrating.md)":
        "packing packing_strategy padding_free sample_packing neat_packing packed dataset_packed "
        "pack group_by_length pad_to_sequence_len pad_to_max_length pad_to_multiple_of pad_token "
        "eval_packing eval_sample_packing batch_flattening",
    "not needed: the chat template writes the end-of-turn token, and this token is trained":
        "eos_token train_on_eos eot_tokens",
    "not needed: a file of any size is prepared once, and then read from disk":
        "streaming dataset_streaming buffer_size dataset_keep_in_memory",
    "not needed: every epoch is shuffled; train.seed decides the order":
        "shuffle shuffle_dataset shuffle_merged_datasets",
    "not needed: a checkpoint is always saved in the background": "enable_async_checkpointing",
    "not needed: sftctl reads the kind of model from its directory":
        "model_type checkpoint_files recipe_checkpoint convert_to_litgpt tie_embeddings",
    "not needed: sftctl finds the format of the rows":
        "conversation_style standardize_sharegpt formatting ds_type",
    "leave it out: an evaluation uses micro-batches of the same size as training":
        "per_device_eval_batch_size eval_batch_size batch_size_val eval_max_iters",
    "leave it out: a run is evaluated before its first step and after its last":
        "eval_on_start initial_validation final_validation",
    "leave it out: metrics.jsonl has every step":
        "logging_strategy logging_first_step log_peak_memory_stats log_level "
        "include_num_input_tokens_seen include_tokens_per_second disable_tqdm",
    "leave it out: token accuracy is always measured": "compute_accuracy",
    "leave it out: the device decides the attention kernel":
        "attn_implementation flash_attention flash_attn sdp_attention use_flash_attn "
        "xformers_attention flex_attention eager_attention",
    "leave it out: the loss is already computed in chunks":
        "use_liger_kernel use_liger enable_liger_kernel",
    "leave it out: the loss is always plain cross-entropy":
        "neftune_noise_alpha noisy_embedding_alpha label_smoothing_factor loss_type loss "
        "use_dft_loss",
    "leave it out: products of float32 are computed in float32": "tf32",
    "leave it out: --nproc-per-node N starts N ranks": "ddp",
    "leave it out: `sftctl train` does nothing else": "do_train stage",
    "leave it out: all linear layers get an adapter; adapter.targets can select layers":
        "lora_target_linear apply_lora_to_mlp apply_lora_to_output lora_query lora_key lora_value "
        "lora_projection lora_mlp lora_head",
    "leave it out: a run with --lora saves only the adapter": "save_adapter_weights_only",
    "leave it out: the biases of an adapter are not trained": "bias",
    "leave it out: the only type is nf4 with double quantization":
        "quantization_type double_quantization bnb_4bit_quant_type use_bnb_nested_quant "
        "quantization_method",
    "leave it out: sftctl uses the defaults of transformers":
        "gradient_checkpointing_kwargs use_reentrant use_cache remove_unused_columns "
        "model_init_kwargs device_map low_cpu_mem_usage",
}  # fmt: skip

_OTHERWISE = {
    "`sftctl resume RUN_DIR` continues a run":
        "resume from_resume resume_from_checkpoint resume_from auto_resume_from_checkpoints "
        "resume_checkpoint",
    "`sftctl prepare-data FILE --val-input FILE`, then train on the store that it writes":
        "validation_file validation_data eval_file eval_dataset val_file eval_data_path "
        "dataset_val test_datasets dataset_test_split",
    "`sftctl prepare-data --workers N`; the default is one per core":
        "dataset_num_proc preprocessing_num_workers dataset_processes",
    "`sftctl prepare-data FILE --output STORE`, then --data STORE":
        "dataset_prepared_path tokenized_path",
    "`sftctl chat RUN_DIR` answers": "for_inference",
    "`sftctl report RUN_DIR` draws the curves": "plot_loss",
    "`sftctl export RUN_DIR` writes the model":
        "export_dir save_only_model save_pretrained_merged save_pretrained_gguf",
    "`sftctl export RUN_DIR --merge` merges an adapter": "merge_lora",
    "nothing is uploaded; `sftctl export` writes the directory to upload":
        "push_to_hub hub_model_id hub_token hub_strategy",
    "the file is an argument: `sftctl train RUN.toml`": "config config_file",
    "--nproc-per-node": "n_gpu gpus num_gpus nproc nprocs num_processes devices",
    "torchrun starts ranks on several machines (docs/distributed.md)": "num_nodes nnodes",
    "--model takes a preset (minimind-3), or a directory with your own config.json":
        "hidden_size num_hidden_layers num_attention_heads n_layers n_embd dim rope_scaling",
    "the chat template of the model is used; --chat-template FILE replaces it":
        "template prompt_style prompt_template get_chat_template",
    "data is a file or folder on this machine: --data FILE names it":
        "dataset_dir dataset_config dataset_train_split dataset_info",
    "weights of sources: --mix NAME=WEIGHT,…": "mix_strategy interleave_probs",
    "[[evaluation.sets]] in RUN.toml names validation sets": "eval_on_each_dataset",
    'evaluation.best = "max NAME" or "min NAME"': "greater_is_better",
    "set the environment variables of W&B, such as WANDB_ENTITY or WANDB_NAME":
        "wandb_entity wandb_name wandb_run_id wandb_watch wandb_log_model",
    "select the rows before: `head -n 1000 FILE`": "max_samples",
    "leave it out: `sftctl report RUN_DIR` prints the name of the file; open it in a browser":
        "open browser",
    "put it into the rows, as a system message":
        "new_system_prompt default_system_message default_system",
    "a run is never overwritten: choose another --output-dir": "overwrite_output_dir overwrite",
    "stop the run with Ctrl-C or SIGTERM when the time is over: it is saved": "max_time",
    "download this revision, and use its directory as --model": "model_revision revision",
}  # fmt: skip

_NOTHING = {
    "AdamW is the only optimizer; [optim] in RUN.toml has its settings":
        "optimizer optim optim_args use_galore use_apollo use_badam use_muon use_adam_mini",
    "not available in sftctl: code in a model directory is never run": "trust_remote_code",
    "not available in sftctl: rows are shuffled in every epoch": "disable_shuffling",
    "not available in sftctl: only supervised fine-tuning":
        "rl pref_beta pref_loss dpo_beta ref_model reward_model",
    "not available in sftctl: the product of the adapter's matrices always starts at zero":
        "pissa_init loftq_config init_lora_weights peft_init_lora_weights",
    "not available in sftctl: DDP and FSDP are the only strategies":
        "tensor_parallel_dim sequence_parallel_degree fsdp_cpu_offload custom_sharded_layers",
    "not available in sftctl": "optimizer_in_bwd profiler plugins use_unsloth shift_attn",
}  # fmt: skip

SENTENCES: dict[str, Ours] = _answers(_NOT_NEEDED | _OTHERWISE | _NOTHING)
