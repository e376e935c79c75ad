"""Which names a checkpoint's pickle may refer to: data, and settings of known tools."""

import re

REFERS_TO_CODE = "refers to code"

_DATA = re.compile(
    r"""
    collections\.(OrderedDict|defaultdict|deque|Counter)
    | builtins\.(set|frozenset|bytearray|complex|slice|range|object)
    | builtins\.(dict|list|tuple|int|float|str|bool)
    | __builtin__\.(set|object)
    | copyreg\._reconstructor | copy_reg\._reconstructor
    | _codecs\.encode
    | numpy\.(dtype|ndarray)
    | numpy\.dtypes\.\w+DType
    | numpy\.(core|_core)\.multiarray\.(_reconstruct|scalar)
    | torch\.(Size|device|dtype|strided|sparse_coo|per_tensor_affine)
    | torch\.(Double|Float|Half|BFloat16|Long|Int|Short|Char|Byte|Bool|Untyped|ComplexFloat)Storage
    | torch\.storage\.(UntypedStorage|TypedStorage)
    | torch\.(float|bfloat|int|uint|complex|bool)\w*
    | torch\._utils\._rebuild_(tensor|tensor_v2|tensor_v3|parameter|parameter_with_state)
    | torch\.(Tensor|nn\.parameter\.Parameter)
    | torch\.serialization\._get_layout
    | torch\.distributed\.checkpoint\.metadata\.\w+
    | torch\.distributed\.checkpoint\.filesystem\.(_StorageInfo|_StoragePrefix)
    | (datetime\.(datetime|timedelta|date) | argparse\.Namespace | types\.SimpleNamespace)
    | (pathlib|pathlib\._local)\.(Pure)?(Posix|Windows)?Path
    """,
    re.VERBOSE,
)
# A class of settings: a known package, a module in it, a capital letter. So not a function.
_SETTINGS = re.compile(r"(transformers|trl|accelerate|peft)(\.\w+)+\.[A-Z]\w*")


def code_problems(names: frozenset[str]) -> list[str]:
    """A problem if a pickle refers to anything else: unpickling it would run that code."""
    bad = sorted(n for n in names if not (_DATA.fullmatch(n) or _SETTINGS.fullmatch(n)))
    more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
    return [f"{REFERS_TO_CODE}: {', '.join(bad[:3])}{more} (not run)"] if bad else []
