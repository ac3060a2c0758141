"""Execute pieces of code, each in a fork of this process, which has imported torch and what transformers needs.

forked.py reads {NAME: CODE, ...} as JSON from stdin and prints {NAME: [EXIT_CODE, STDOUT, STDERR], ...}. None of the
packages that adopt_hf patches has been imported when a piece begins. An import of the Trainer takes a second then.
sys.argv of a piece is [NAME].
"""

import contextlib
import gc
import importlib
import json
import os
import sys
import tempfile
import traceback

PATCHED = ("transformers", "accelerate", "peft", "datasets", "deepspeed", "adopt_hf")

NEEDED = ("torch._dynamo", "torch.distributed.checkpoint", "torch.nn.attention.flex_attention", "sklearn.metrics")
NEEDED += ("huggingface_hub.errors", "huggingface_hub.hf_api", "tokenizers", "safetensors.torch", "PIL.Image", "jinja2")
NEEDED += (
    "scipy.stats",
    "pandas",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "fsspec.asyn",
    "multiprocess",
    "regex",
    "xxhash",
)

for module in NEEDED:
    with contextlib.suppress(ImportError):  # it only makes the pieces faster
        importlib.import_module(module)
assert not [module for module in sys.modules if module.split(".")[0] in PATCHED]
gc.freeze()
results = {}
for name, code in json.load(sys.stdin).items():
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            status, sys.argv = 1, [name]
            try:
                exec(compile(code, name, "exec"), {"__name__": "__main__"})
                status = 0
            except BaseException:  # noqa: BLE001  the parent shows it
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        exit_code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode())
        results[name] = [exit_code, *texts]
json.dump(results, sys.stdout)
