"""How far a device's log-probabilities are from the truth and from the processor's, on a real model.

    LOGITS_TOOL=.../logits_tool python3 measure_device.py --device cuda MODEL.gguf...

Each model is found by its hash among the truth_*.json beside this file. For each are printed the
mean and the largest distance of the device from the truth, of the processor's exact arithmetic from the
truth, and of the two from each other. Ends with 1 where the device is farther from the truth
than llama.cpp, or farther from the processor than 0.02 in the mean.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

from logits_tool import distance, shares, true_shares

FROM_PROCESSOR = 0.02


def truth_of(model):
    with open(model, "rb") as file:
        found = hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else \
            hashlib.sha256(file.read())
    for path in sorted(Path(__file__).parent.glob("truth_*.json")):
        truth = json.loads(path.read_text())
        if truth["sha256"] == found.hexdigest():
            return path.stem.removeprefix("truth_"), truth
    sys.exit(f"{model}: no truth_*.json is of this file")


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--device", default="cuda")
    arguments.add_argument("models", nargs="+", metavar="MODEL.gguf")
    options = arguments.parse_args()
    failed = False
    for model in options.models:
        name, truth = truth_of(model)
        device = shares(truth, model, ["--device", options.device])
        exact = shares(truth, model, ["--exact"])
        true, theirs = true_shares(truth), truth["llama_cpp"]["distance"]
        mean, largest = distance(device, true)
        apart, most = distance(device, exact)
        print(f"{name}: {options.device} from the truth {mean:.5f}, largest {largest:.4f} (llama.cpp "
              f"{theirs['mean']:.5f}, {theirs['largest']:.4f}); the processor, exact: "
              "{:.5f}, {:.4f}; ".format(*distance(exact, true)) +
              f"from each other {apart:.5f}, {most:.4f}", flush=True)
        failed |= mean > theirs["mean"] or largest > theirs["largest"] or apart > FROM_PROCESSOR
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
