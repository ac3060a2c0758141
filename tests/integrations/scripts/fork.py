"""Do `python -m adopt_hf run ARGS...` many times: each in a fork of this process, which has imported torch.

fork.py MODULES... imports these as well, reads [[ARGS, FOLDER], ...] as JSON from stdin and prints
[[EXIT_CODE, STDOUT, STDERR], ...].
"""

import gc
import importlib
import json
import os
import runpy
import sys
import tempfile

import adopt_hf


def in_child(args: list[str], folder: str, out: int, err: int) -> None:
    os.chdir(folder)
    os.dup2(out, 1)
    os.dup2(err, 2)
    sys.path[0] = os.getcwd()
    sys.argv = [os.path.join(os.path.dirname(adopt_hf.__file__), "__main__.py"), "run", *args]


for module in sys.argv[1:]:
    importlib.import_module(module)
gc.freeze()
todo = json.load(sys.stdin)
results = []
while todo:
    args, folder = todo.pop(0)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            in_child(args, folder, out.fileno(), err.fileno())
            break
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode())
        results.append([code, *texts])
if child == 0:
    runpy._run_module_as_main("adopt_hf")  # this is what `python -m` calls; whatever it raises ends this process
else:
    json.dump(results, sys.stdout)
