#!/usr/bin/env bash
# On a machine with a GPU and its own torch: builds for the device at hand, runs the GPU tests, the
# kernel tests under compute-sanitizer, and the benchmarks, in less than nine minutes. Leaves in the
# folder OUT log.txt, steps.jsonl, the benchmarks' JSON and summary.txt, which is also printed last.
# Every step has its own time limit, and one that fails does not stop the rest.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${OUT:?OUT must name a folder}
mkdir -p "$out"
python=${PYTHON:-python3}
budget=${BUDGET:-530}
export PYTHONUNBUFFERED=1

# step NAME LIMIT COMMAND...: the limit is in seconds, cut to what is left of the budget.
step() {
  local name=$1 limit=$2
  shift 2
  local left=$((budget - SECONDS)) begin=$SECONDS status
  [ "$limit" -lt "$left" ] || limit=$left
  if [ "$limit" -lt 5 ]; then
    status=skipped
  else
    echo "== $name" | tee -a "$out/log.txt"
    timeout --kill-after=5 "$limit" "$@" > "$out/step.txt" 2>&1
    status=$?
    cat "$out/step.txt" >> "$out/log.txt"
    tail -n 12 "$out/step.txt"
  fi
  case $status in
    0) status=passed ;;
    124 | 137) status="out of time" ;;
    5) status="no tests" ;;
    skipped) ;;
    *) status="failed ($status)" ;;
  esac
  printf '{"step": "%s", "status": "%s", "seconds": %d}\n' "$name" "$status" $((SECONDS - begin)) \
    >> "$out/steps.jsonl"
}

capability=$("$python" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())') || exit 2
export FASTNODE_CUDA=1 TORCH_CUDA_ARCH_LIST=$capability PYTHONPATH=$PWD MAX_JOBS=${MAX_JOBS:-$(nproc)}
printf '{"capability": "%s"}\n' "$capability" > "$out/steps.jsonl"
[ -e fastnode/triton_kernels ] || ln -s ../triton_kernels fastnode/triton_kernels
pytest=("$python" -m pytest -q -p no:cacheprovider)
# One case of each kernel and kind of shape: a sanitizer makes every access many times as slow.
kernels=(-m gpu tests/ops/test_rk_cuda.py tests/engines/fused/test_cuda.py -x)
kernels+=(-k "not 1000003 and not derivatives and not graph and not 200000 and not 1024")
sanitizer=$(command -v compute-sanitizer || echo compute-sanitizer)

step build 220 "$python" setup.py build_ext --inplace
step info 40 "$python" -m fastnode info
step tests 110 "${pytest[@]}" -m gpu tests
step odeint 80 "${pytest[@]}" bench/bench_gpu_odeint.py --benchmark-json="$out/odeint.json"
step flow 120 "${pytest[@]}" bench/bench_gpu_flow.py --benchmark-json="$out/flow.json"
step lorenz 60 "${pytest[@]}" bench/bench_gpu_lorenz.py --benchmark-json="$out/lorenz.json"
step memcheck 60 "$sanitizer" --tool memcheck --error-exitcode 1 "${pytest[@]}" "${kernels[@]}"
step racecheck 60 "$sanitizer" --tool racecheck --error-exitcode 1 "${pytest[@]}" "${kernels[@]}"
step tiles 100 "${pytest[@]}" bench/bench_gpu_tiles.py --benchmark-json="$out/tiles.json"
rm -f "$out/step.txt"
"$python" -m bench.gpu_summary "$out" 2>&1 | tee "$out/summary.txt"
exit "${PIPESTATUS[0]}"
