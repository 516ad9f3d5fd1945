#!/bin/sh
# 用 Docker 啟動 text-generation-inference，參數與 Taiwan-LLM 的同名腳本相同。
# Start text-generation-inference in Docker; the arguments are those of Taiwan-LLM's script of this name.
#
#   deploy/run_text_generation_inference.sh MODEL NUM_GPUS DIR PORT MAX_INPUT_LEN MODEL_MAX_LEN
#
#   MODEL          hub 名稱，或本機的模型資料夾    hub name or local folder   (yentinglin/Taiwan-LLM-7B-v2.1-chat)
#   NUM_GPUS       用幾張 GPU                      GPUs                       (8)
#   DIR            下載的權重放哪裡                folder for weights         (./data)
#   PORT           連接埠                          port                       (8080)
#   MAX_INPUT_LEN  提示最多幾個 token              tokens of a prompt         (2000)
#   MODEL_MAX_LEN  提示加回答最多幾個 token        prompt + answer            (4000)
#
# 環境變數 (environment): HF_TOKEN 下載要授權的模型；API_KEY 要求金鑰；HOST 只聽這個位址（預設全部）；
# TGI_IMAGE 換映像檔；DRY_RUN=1 只印出指令。
set -eu

model=${1:-yentinglin/Taiwan-LLM-7B-v2.1-chat}
num_gpus=${2:-8}
volume=${3:-$PWD/data}
port=${4:-8080}
max_input=${5:-2000}
max_total=${6:-4000}
image=${TGI_IMAGE:-ghcr.io/huggingface/text-generation-inference:3.3.6}

fail() {
    printf '錯誤：%s\n處理：%s\n' "$1" "$2" >&2
    exit 2
}

[ $# -le 6 ] || fail "參數太多 (too many arguments)" "用法：$0 MODEL NUM_GPUS DIR PORT MAX_INPUT_LEN MODEL_MAX_LEN"
for number in "$num_gpus" "$port" "$max_input" "$max_total"; do
    case $number in
        '' | *[!0-9]* | 0*) fail "不是正整數 (not a positive number): $number" "檢查參數的順序" ;;
    esac
done
[ "$port" -le 65535 ] || fail "沒有連接埠 $port (no such port)" "用 1024 到 65535"
[ "$max_input" -lt "$max_total" ] ||
    fail "MAX_INPUT_LEN $max_input 要小於 MODEL_MAX_LEN $max_total (no room for an answer)" "把 MAX_INPUT_LEN 調小"
command -v docker >/dev/null || fail "找不到 docker (docker is not installed)" "安裝 Docker 與 NVIDIA Container Toolkit"

[ "${DRY_RUN:-}" = 1 ] || mkdir -p "$volume"
case $volume in
    /*) ;;
    *) volume=$PWD/$volume ;; # docker takes a relative path for a volume's name
esac

set -- --model-id "$model"
if [ -d "$model" ]; then
    folder=$(cd "$model" && pwd)
    [ -f "$folder/config.json" ] || fail "不是模型資料夾 (no config.json): $folder" "給 twllm 或 transformers 存的資料夾"
    set -- --model-id /model
fi
set -- "$@" --num-shard "$num_gpus" --max-input-tokens "$max_input" --max-total-tokens "$max_total"
set -- "$image" "$@"
[ -z "${folder:-}" ] || set -- -v "$folder:/model:ro" "$@"
[ -z "${HF_TOKEN:-}" ] || set -- -e HF_TOKEN "$@" # by name: values would show in the list of processes
if [ -n "${API_KEY:-}" ]; then
    set -- -e API_KEY "$@"
elif [ -z "${HOST:-}" ]; then
    printf '注意：同一個網路上的人都連得到，而且不用金鑰 (open to the network): HOST=127.0.0.1 或 API_KEY=…\n' >&2
fi
set -- docker run --rm --gpus all --shm-size 1g -p "${HOST:+$HOST:}$port:80" -v "$volume:/data" "$@"

if [ "${DRY_RUN:-}" = 1 ]; then
    printf '%s ' "$@"
    printf '\n'
    exit 0
fi
exec "$@"
