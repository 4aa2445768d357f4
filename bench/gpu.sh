#!/usr/bin/env bash
# On a machine with a GPU and its own torch: builds for the device at hand, runs the GPU tests and
# the benchmarks, and leaves logs and raw JSON in the folder OUT. A failed part does not stop the rest.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${OUT:?OUT must name a folder}
mkdir -p "$out"
python=${PYTHON:-python3}
failed=0

part() {
  local name=$1
  shift
  echo "== $name"
  "$@" 2>&1 | tee "$out/$name.log" | tail -n 25
  local status=${PIPESTATUS[0]}
  [ "$status" -eq 0 ] || { echo "== $name failed ($status)"; failed=1; }
}

capability=$("$python" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())') || exit 2
export FASTNODE_CUDA=1 TORCH_CUDA_ARCH_LIST=$capability PYTHONPATH=$PWD
ln -sfn ../triton_kernels fastnode/triton_kernels
part build "$python" setup.py build_ext --inplace
part info "$python" -m fastnode info
part tests "$python" -m pytest -m gpu -q -p no:cacheprovider
part flow "$python" -m pytest bench/bench_flow.py -q --benchmark-json="$out/flow.json"
exit "$failed"
