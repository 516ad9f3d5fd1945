#!/bin/sh
# 用 Docker 啟動 vLLM，參數與 Taiwan-LLM 的同名腳本相同。
# Start vLLM in Docker; the arguments are those of Taiwan-LLM's script of this name.
#
#   deploy/start_inference_server.sh MODEL PORT GPUS
#
#   MODEL   hub 名稱，或本機的模型資料夾               hub name or local folder   (yentinglin/Llama-3-Taiwan-70B-Instruct)
#   PORT    連接埠                                     port                       (8000)
#   GPUS    哪幾張 GPU，以逗號分隔，或 all             which GPUs                 (0,1)
#
# 環境變數 (environment): HF_TOKEN；API_KEY；HOST；MAX_CONTEXT 提示加回答最多幾個 token；VLLM_IMAGE；DRY_RUN=1 只印出指令。
set -eu

model=${1:-yentinglin/Llama-3-Taiwan-70B-Instruct}
port=${2:-8000}
gpus=${3:-0,1}
image=${VLLM_IMAGE:-vllm/vllm-openai:latest}

fail() {
    printf '錯誤：%s\n處理：%s\n' "$1" "$2" >&2
    exit 2
}

[ $# -le 3 ] || fail "參數太多 (too many arguments)" "用法：$0 MODEL PORT GPUS"
case $port in
    '' | *[!0-9]* | 0*) fail "不是連接埠 (not a port): $port" "用 1024 到 65535" ;;
esac
gpus=${gpus#\"} gpus=${gpus#device=} gpus=${gpus%\"} # Taiwan-LLM's form: "device=0,1"
case $gpus in
    all) num_gpus=${NUM_GPUS:-1} ;;
    '' | *[!0-9,]* | ,* | *, | *,,*) fail "看不懂哪幾張 GPU (bad list of GPUs): $gpus" "例如 0,1 或 all" ;;
    *) num_gpus=$(printf '%s' "$gpus" | tr ',' '\n' | grep -c .) ;;
esac
command -v docker >/dev/null || fail "找不到 docker (docker is not installed)" "安裝 Docker 與 NVIDIA Container Toolkit"

if [ -d "$model" ]; then
    folder=$(cd "$model" && pwd)
    [ -f "$folder/config.json" ] || fail "不是模型資料夾 (no config.json): $folder" "給 twllm 或 transformers 存的資料夾"
    set -- --model /model --served-model-name "$(basename "$folder")"
else
    set -- --model "$model"
fi
set -- "$image" "$@" --tensor-parallel-size "$num_gpus"
[ -z "${MAX_CONTEXT:-}" ] || set -- "$@" --max-model-len "$MAX_CONTEXT"
[ -z "${folder:-}" ] || set -- -v "$folder:/model:ro" "$@"
[ -z "${HF_TOKEN:-}" ] || set -- -e HF_TOKEN "$@"
if [ -n "${API_KEY:-}" ]; then
    VLLM_API_KEY=$API_KEY
    export VLLM_API_KEY
    set -- -e VLLM_API_KEY "$@"
fi
[ "$gpus" = all ] || gpus="\"device=$gpus\""
set -- docker run --rm --gpus "$gpus" --ipc host -p "${HOST:+$HOST:}$port:8000" \
    -v "${HF_HOME:-$HOME/.cache/huggingface}:/root/.cache/huggingface" "$@"

if [ "${DRY_RUN:-}" = 1 ]; then
    printf '%s ' "$@"
    printf '\n'
    exit 0
fi
exec "$@"
