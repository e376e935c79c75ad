"""The names that a checkpoint's pickle may refer to: data types, and settings of known tools.

A name has two parts: a module and a qualified name. Both must be in the table together. No
qualified name in the tables has a dot: from protocol 4 on, `("torch", "os.system")` would find the
module os that torch imports.
"""

from collections.abc import Iterable, Mapping

REFERS_TO_CODE = "refers to code"
_MOST_SHOWN = 3

FullName = tuple[str, str]  # (module, qualified name)

_SIZES = "8 16 32 64"
_STORAGES = (
    "Double Float Half BFloat16 Long Int Short Char Byte Bool Untyped ComplexFloat ComplexDouble "
    "QInt8 QInt32 QUInt8 QUInt4x2 QUInt2x4"
)
_TRL_CONFIGS = (
    "SFT", "DPO", "GRPO", "KTO", "ORPO", "CPO", "BCO", "PPO", "RLOO", "Reward", "PRM", "GKD",
    "XPO", "DDPO",
)  # fmt: skip
_TRL_EXPERIMENTAL = (
    "ORPO", "CPO", "GKD", "BCO", "PPO", "XPO", "PRM", "GOLD", "SDPO", "SDFT", "TPO", "GMPO",
    "A2PO",
)  # fmt: skip


def _each(prefix: str, endings: str, suffix: str = "") -> str:
    return " ".join(f"{prefix}{ending}{suffix}" for ending in endings.split())


def _names(table: Mapping[str, str]) -> frozenset[FullName]:
    return frozenset((module, name) for module, names in table.items() for name in names.split())


_DATA = _names(
    {
        "collections": "OrderedDict defaultdict deque Counter",
        "builtins": "set frozenset bytearray complex slice range object dict list tuple int float "
        "str bool",
        "__builtin__": "set frozenset bytearray complex slice object dict list tuple int long "
        "float str unicode bool",
        "copyreg": "_reconstructor",
        "copy_reg": "_reconstructor",
        "_codecs": "encode",
        "datetime": "datetime timedelta date",
        "argparse": "Namespace",
        "types": "SimpleNamespace",
        **dict.fromkeys(
            ("pathlib", "pathlib._local"),
            "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath",
        ),
        "numpy": "dtype ndarray",
        "numpy.dtypes": _each("Int", _SIZES, "DType")
        + _each(" UInt", _SIZES, "DType")
        + " BoolDType Float16DType Float32DType Float64DType Complex64DType Complex128DType "
        "StrDType BytesDType LongDType ULongDType",
        **dict.fromkeys(("numpy.core.multiarray", "numpy._core.multiarray"), "_reconstruct scalar"),
        "torch": "Size device dtype Tensor strided sparse_coo bool per_tensor_affine "
        "per_channel_affine bfloat16 float16 float32 float64 complex32 complex64 complex128 "
        "float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu "
        "float4_e2m1fn_x2 "
        + _each("int", _SIZES)
        + _each(" uint", _SIZES)
        + " "
        + _each("", _STORAGES, "Storage"),
        "torch.cuda": _each("", _STORAGES, "Storage"),
        "torch.storage": "UntypedStorage TypedStorage",
        "torch.nn.parameter": "Parameter",
        "torch.serialization": "_get_layout",
        "torch._utils": _each(
            "_rebuild_",
            "tensor tensor_v2 tensor_v3 parameter parameter_with_state qtensor sparse_tensor "
            "meta_tensor_no_storage wrapper_subclass device_tensor_from_numpy "
            "device_tensor_from_cpu_tensor",
        ),
        # Tensors sharded over ranks (verl, FSDP2); torch.load(weights_only=True) accepts these too.
        "torch._tensor": "_rebuild_from_type_v2",
        "torch.distributed.tensor": "DTensor",
        "torch.distributed.tensor._dtensor_spec": "DTensorSpec TensorMeta ShardOrderEntry",
        "torch.distributed.tensor.placement_types": "Shard Replicate Partial",
        "torch.distributed.device_mesh": "DeviceMesh",
        "torch.distributed._mesh_layout": "_MeshLayout _FlatLayout",
        "torch.distributed.checkpoint.metadata": "ChunkStorageMetadata _MEM_FORMAT_ENCODING "
        "TensorProperties TensorStorageMetadata BytesStorageMetadata StorageMeta Metadata "
        "MetadataIndex",
        "torch.distributed.checkpoint.filesystem": "_StorageInfo _StoragePrefix",
        # Enumerations: a member is pickled as a call of its class with its value.
        "transformers.trainer_utils": "IntervalStrategy SaveStrategy EvaluationStrategy "
        "HubStrategy SchedulerType FSDPOption",
        "transformers.training_args": "OptimizerNames ParallelMode",
        "transformers.debug_utils": "DebugOption",
        "accelerate.utils.dataclasses": "DistributedType SageMakerDistributedType "
        "ComputeEnvironment DynamoBackend LoggerType PrecisionType RNGType CustomDtype "
        "FP8BackendType DDPCommunicationHookType",
        "trl.trainer.dpo_config": "FDivergenceType",
        "deepspeed.runtime.zero.config": "ZeroStageEnum",
    }
)

_SETTINGS = _names(
    {
        "transformers.training_args": "TrainingArguments",
        "transformers.training_args_seq2seq": "Seq2SeqTrainingArguments",
        "transformers.trainer_pt_utils": "AcceleratorConfig",
        "transformers.generation.configuration_utils": "GenerationConfig",
        **dict.fromkeys(
            ("transformers.integrations.deepspeed", "transformers.deepspeed"),
            "HfDeepSpeedConfig HfTrainerDeepSpeedConfig",
        ),
        "accelerate.state": "PartialState AcceleratorState GradientState",
        "accelerate.utils.dataclasses": "AutocastKwargs DistributedDataParallelKwargs "
        "GradScalerKwargs InitProcessGroupKwargs ProfileKwargs DataLoaderConfiguration "
        "ProjectConfiguration GradientAccumulationPlugin TorchDynamoPlugin DeepSpeedPlugin "
        "FullyShardedDataParallelPlugin MegatronLMPlugin TorchTensorParallelPlugin "
        "TorchContextParallelConfig TorchTensorParallelConfig DeepSpeedSequenceParallelConfig",
        "accelerate.parallelism_config": "ParallelismConfig",
        **{f"trl.trainer.{name.lower()}_config": f"{name}Config" for name in _TRL_CONFIGS},
        "trl.trainer.online_dpo_config": "OnlineDPOConfig",
        "trl.trainer.nash_md_config": "NashMDConfig",
        "trl.trainer.iterative_sft_config": "IterativeSFTConfig",
        "trl.trainer.alignprop_config": "AlignPropConfig",
        "trl.trainer.distillation_config": "DistillationConfig",
        **{
            f"trl.experimental.{name.lower()}.{name.lower()}_config": f"{name}Config"
            for name in _TRL_EXPERIMENTAL
        },
        "trl.experimental.online_dpo.online_dpo_config": "OnlineDPOConfig",
        "trl.experimental.nash_md.nash_md_config": "NashMDConfig",
        "llamafactory.hparams.training_args": "TrainingArguments",
        "axolotl.core.training_args": "AxolotlTrainingArguments",
        "UnslothSFTTrainer": "UnslothSFTConfig",
        "deepspeed.runtime.fp16.loss_scaler": "LossScaler DynamicLossScaler",
        "deepspeed.utils.tensor_fragment": "fragment_address",
    }
)
"""Classes of settings. A pickle may create an empty object and set its attributes. A call with
arguments would run `__init__` of the class, so it counts as code.
"""


def code_in(names: Iterable[FullName], called: Iterable[FullName]) -> frozenset[str]:
    """The names that are not in the tables, and the settings that the pickle calls."""
    bad = {name for name in names if name not in _DATA and name not in _SETTINGS}
    return frozenset(".".join(name) for name in bad | (_SETTINGS & frozenset(called)))


def code_problems(code: frozenset[str]) -> list[str]:
    """The problem that unpickling would run code; [] if `code` is empty."""
    more = f" and {len(code) - _MOST_SHOWN} more" if len(code) > _MOST_SHOWN else ""
    shown = ", ".join(sorted(code)[:_MOST_SHOWN])
    return [f"{REFERS_TO_CODE}: {shown}{more} (not run)"] if code else []
