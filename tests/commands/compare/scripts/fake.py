"""A script that leaves what a Trainer leaves, without the seconds that transformers takes to import.

fake.py HOW --optim NAME --learning_rate LR --seed N --output_dir DIR
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("how")
for name in ("optim", "learning_rate", "seed", "output_dir"):
    parser.add_argument(f"--{name}")
args = parser.parse_args()
output, seed = Path(args.output_dir), int(args.seed)
asked = Path(os.environ["ADOPT_HF_COMPARE"])
stdin = sys.stdin.read()
with open(asked.parents[2] / "starts", "a") as file:
    file.write(f"{args.optim} {seed}{stdin}\n")

if args.how == "print":
    print("nothing is trained here")
    sys.exit()
if args.how == "refuse":
    seen = {"refused": ["optim", "sgd"], "output_dir": str(output)}
    (asked.parent / "seen-1.json").write_text(json.dumps(seen))
    sys.exit(1)
if args.how == "broken":
    sys.exit("ImportError: no module named torch")
if args.how == "fail" and (args.optim, seed) == ("adopt", 1):
    print("reading data\nValueError: record 17 is empty")
    sys.exit(3)
if args.how == "wait" and seed == 1:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (asked.parents[2] / "pids").write_text(f"{os.getpid()} {child.pid}")
    time.sleep(600)
if args.how == "together":
    time.sleep(0.5)
output.mkdir()
loss = {"adopt": 2.0}.get(args.optim, 2.1) + seed / 10
history = [{"step": step, "eval_loss": loss + 1 / step} for step in (5, 10)]
(output / "trainer_state.json").write_text(json.dumps({"global_step": 10, "log_history": history}))
