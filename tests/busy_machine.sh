#!/usr/bin/env bash
# All tests on a machine that is busy with something else: in the order of the files, then in a random one.
#
#     tests/busy_machine.sh [SEED]
#
# The seed of the random order is printed; give it to meet that order again. The processes that keep the cores busy end
# with this script, however it ends. PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-.venv/bin/python}"
seed="${1:-$RANDOM}"
busy=()
trap 'kill "${busy[@]}"' EXIT
trap 'exit 130' INT TERM
for _ in $(seq "$(nproc)"); do
    ( while :; do :; done ) &
    busy+=($!)
done
tests=("$python" -m pytest -m 'not browser' --numprocesses logical --maxprocesses 8 --dist worksteal)
"${tests[@]}"
echo "random order: tests/busy_machine.sh $seed"
"${tests[@]}" -p randomly --randomly-seed "$seed"
