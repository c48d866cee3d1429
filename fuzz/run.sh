#!/bin/bash
# Fuzzes every target, or those that are named, for so many seconds each:
#
#   run.sh SECONDS [TARGET]...
#
# Needs no nightly compiler and no cargo-fuzz: these are the flags that it would give, without a sanitizer, whose place
# `forbid(unsafe_code)` mostly takes. What was found is in artifacts/TARGET; give the file to the target to see it again.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")"
seconds=$1
shift
triple=$(rustc -vV | sed -n 's/^host: //p')
flags=(
    -Cpasses=sancov-module
    -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares
    --cfg fuzzing
)
# With a target named, the flags do not reach build scripts, which have nothing to link them with.
RUSTFLAGS="${flags[*]}" cargo build --locked --release --target "$triple"

if [[ $# -eq 0 ]]; then
    mapfile -t targets < <(cd fuzz_targets && printf '%s\n' *.rs | sed 's/\.rs$//')
    set -- "${targets[@]}"
fi
./seeds.sh
failed=()
for target in "$@"; do
    mkdir -p "corpus/$target" "artifacts/$target"
    if "target/$triple/release/$target" -max_total_time="$seconds" -rss_limit_mb=2048 -malloc_limit_mb=512 \
        -timeout=10 -max_len=32768 -print_final_stats=1 -artifact_prefix="artifacts/$target/" \
        "corpus/$target" >"artifacts/$target/log" 2>&1; then
        awk -v target="$target" '
            /^stat::number_of_executed_units/ { executed = $2 }
            /^stat::average_exec_per_sec/ { second = $2 }
            /^stat::peak_rss_mb/ { peak = $2 }
            / cov: / { for (i = 1; i < NF; i++) if ($i == "cov:") covered = $(i + 1) }
            END { printf "%-10s %10d runs, %7d in a second, %5d edges, %5d MiB\n", target, executed, second, covered, peak }
        ' "artifacts/$target/log"
    else
        failed+=("$target")
        echo "$target FAILED:"
        tail -n 30 "artifacts/$target/log"
    fi
done
if [[ ${#failed[@]} -gt 0 ]]; then
    echo "failed: ${failed[*]}" >&2
    exit 1
fi
