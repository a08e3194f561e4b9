#!/usr/bin/env bash
# All that is to be known of jaxstyle on a GPU, in one command -> WORKDIR/table.md.
#
#     bash tests/gpu.sh WORKDIR
#
# From a clone, on a machine with a GPU of NVIDIA: a new environment with the extra cuda12, the test suite, pictures of
# four sizes, the same bits twice, a step in three precisions, without --deterministic too and beside PyTorch's, a
# vmapped sweep of 64 rates, and what optimizers cost outside evaluations. Some half an hour. A step that fails is told
# in the table, and the others go on.
#
# SIZES, BENCHMARK_SIZES, RATES and STEPS make it smaller; EXTRA=, TESTS=tests/test_vgg.py and TORCH= (none) try the
# script itself on a machine without a GPU; PYTHON names an environment that is there.
set -uo pipefail
[ $# -eq 1 ] || { echo "usage: bash tests/gpu.sh WORKDIR" >&2; exit 2; }
mkdir -p "$1" || exit 2
workdir=$(realpath "$1")
cd "$(dirname "$0")/.." || exit 2
sizes=${SIZES:-512 1024 2048 4096} benchmark_sizes=${BENCHMARK_SIZES:-300,600,1024} rates=${RATES:-64} steps=${STEPS:-120}
extra=${EXTRA-,cuda12} torch=${TORCH-torch}
table=$workdir/table.md
failed=0

note() { printf '%s\n' "$*" | tee -a "$table"; }

# NAME COMMAND…: a row with its seconds, and whether it went well; what it says goes to NAME.log.
row() {
    local name=$1 begun=$SECONDS outcome=passed
    shift
    "$@" >"$workdir/$name.log" 2>&1 || { outcome="failed, see $name.log"; failed=1; }
    note "| $name | $((SECONDS - begun)) s | $outcome | $(tail -n 1 "$workdir/$name.log" | tr '\r|' '\n/' | tail -n 1) |"
}

python=${PYTHON:-$workdir/venv/bin/python}
if [ -z "${PYTHON:-}" ]; then
    python3 -m venv "$workdir/venv" &&
        "$python" -m pip install --quiet -e ".[dev,keras-weights$extra]" -c constraints.txt || exit 1
fi
peer=$workdir/torch/bin/python  # of its own, so that its libraries are not JAX's
if [ -n "$torch" ]; then
    python3 -m venv "$workdir/torch" && "$peer" -m pip install --quiet "$torch" numpy || exit 1
fi

: >"$table"
note "$("$python" -c 'import jax; print("jax", jax.__version__, "on", jax.devices()[0].device_kind)')"
note ""
note "| what | time | outcome | last line |"
note "|---|---|---|---|"
read -r -a tests <<<"${TESTS:-}"
# Several processes at once: none may take most of the card for itself. Without the flags that have a CPU compile fast.
row suite env XLA_PYTHON_CLIENT_PREALLOCATE=false XLA_FLAGS= "$python" -m pytest --quiet "${tests[@]}"
for size in $sizes; do
    row "stylize-$size" "$python" -m experiments.stylize --size="$size" --steps="$steps" --workdir="$workdir/runs/$size"
done
first=${sizes%% *}
# Compiled anew: what XLA chooses by measuring must not count.
row again "$python" -m experiments.stylize --size="$first" --steps="$steps" --workdir="$workdir/runs/again" \
    --compilation_cache=
row same-bits cmp "$workdir/runs/$first/image.png" "$workdir/runs/again/image.png"
# By JAX's other names of precisions a GPU multiplies in TF32 as well; bfloat16 is one of --convolutions.
for precision in tensorfloat32 float32; do
    row "step-$precision" env JAX_DEFAULT_MATMUL_PRECISION="$precision" "$python" -m experiments.benchmark \
        --sizes="$benchmark_sizes" --convolutions=direct,winograd,bfloat16 --optimizers=lbfgs --optimizers=adam
done
# With --deterministic XLA does not try which algorithm of cuDNN is the fastest, as PyTorch's step has it do.
row step-nodeterministic "$python" -m experiments.benchmark --nodeterministic --sizes="$benchmark_sizes" \
    --convolutions=direct,bfloat16
if [ -n "$torch" ]; then
    row torch "$python" -m experiments.benchmark --sizes="$benchmark_sizes" --vs_torch --torch_python="$peer"
fi
grid=$("$python" -c "print(','.join(f'{10 ** (3 * k / $rates - 1):.4g}' for k in range($rates)))")
row sweep "$python" -m experiments.sweep --optimizer=adam --learning_rates="$grid" --size=128 --steps="$steps" \
    --workdir="$workdir/runs/sweep"

for log in step-tensorfloat32 step-float32 step-nodeterministic ${torch:+torch}; do
    note ""
    note "$log:"
    note '```json'
    grep '^{' "$workdir/$log.log" | tee -a "$table"
    note '```'
done
echo "table: $table"
exit "$failed"
