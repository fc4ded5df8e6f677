#!/bin/sh
# Keeps a plan fresh: on a new checkpoint the old plan is verified, and only where it no longer holds one is searched,
# gated, rendered and published.
#
#   MODEL=org/model PLAN=org/plan DATASET=text.jsonl sh refresh.sh all
#   MODEL=org/model PLAN=org/plan DATASET=text.jsonl sh refresh.sh dry-run      verify and price only
#
# Each step can be run alone, in this order: verify price search gate render publish. A search that was stopped goes
# on with the same command, if OUT is kept.
set -eu

MODEL=${MODEL:?names the new checkpoint: a folder or a hub id}
PLAN=${PLAN:-}                    # the old plan: a file, a run's folder or org/name@revision; none: search at once
RECIPE=${RECIPE:-}                # of searches: a YAML file or a name
DATASET=${DATASET:-}              # the text to search on, unless RECIPE names one
KEEP=${KEEP:-0.25}                # how much of the indexers stays
MAX_DELTA=${MAX_DELTA:-0.02}      # nats per token: a plan whose loss may rise by more is not published
TOLERANCE=${TOLERANCE:-0.005}     # nats per token that the old plan may surely have lost before a new search is due
GATE=${GATE:-interval}            # what limits hold: the interval's upper end, or the estimate
MAX_HOURS=${MAX_HOURS:-8}         # the cost limit: a search that is estimated to take longer is not begun
OUT=${OUT:-outputs/refresh}       # where the search works
PUBLIC=${PUBLIC:-public}          # the folder that is published
PUBLISH_REPO=${PUBLISH_REPO:-}    # a repository on the hub to upload it to, with HF_TOKEN; none: the folder is all
SUMMARY=${SUMMARY:-/dev/null}     # a file that a summary in Markdown is added to
WINDOW=${WINDOW:-}                # tokens a window, unless RECIPE or the default
WINDOWS=${WINDOWS:-}              # windows to choose by, likewise
HELDOUT=${HELDOUT:-}              # windows to check by, likewise
RESUME=${RESUME:-auto}            # never: what stands in OUT is of other weights, and is moved aside

decision=$OUT/decision

decide() { mkdir -p "$OUT" && echo "$1" > "$decision" && echo "refresh: $2"; }

# Whether a search is due; a step that is run without the first one stops here.
due() {
    test -f "$decision" || { echo "refresh: run the step verify first" >&2; exit 2; }
    test "$(cat "$decision")" = search || { echo "refresh: the plan holds, nothing to $1"; return 1; }
}

verify() {
    test -n "$PLAN" || { decide search "no old plan, so one is searched"; return; }
    mkdir -p "$OUT"
    code=0
    indexcache verify "$PLAN" --model "$MODEL" --max-delta "$MAX_DELTA" --tolerance "$TOLERANCE" --gate "$GATE" \
        --json > "$OUT/verify.json" || code=$?
    case $code in
        0) decide holds "$PLAN holds on $MODEL" ;;
        1) decide search "$PLAN does not hold on $MODEL, so one is searched" ;;
        *) exit "$code" ;;
    esac
}

# Runs $1 with the options that estimate and search have in common, and those that follow.
searching() {
    command=$1; shift
    if [ -n "$PLAN" ]; then set -- --init "$PLAN" "$@"; fi
    if [ -n "$RECIPE" ]; then set -- --recipe "$RECIPE" "$@"; fi
    if [ -n "$WINDOW" ]; then set -- --window "$WINDOW" "$@"; fi
    if [ -n "$WINDOWS" ]; then set -- --windows "$WINDOWS" "$@"; fi
    if [ -n "$HELDOUT" ]; then set -- --heldout "$HELDOUT" "$@"; fi
    indexcache "$command" --model "$MODEL" --keep "$KEEP" "$@"
}

price() {
    due price || return 0
    searching estimate --json > "$OUT/estimate.json"
    python3 - "$OUT/estimate.json" "$MAX_HOURS" << 'PYTHON'
import json, sys
hours, limit = json.load(open(sys.argv[1]))["seconds"] / 3600, float(sys.argv[2])
print(f"refresh: a search takes about {hours:.2f} hours here, MAX_HOURS is {limit:g}")
if hours > limit:
    sys.exit("refresh: too dear, not begun: raise MAX_HOURS, lower WINDOW or WINDOWS, or search on more GPUs")
PYTHON
}

search() {
    due search || return 0
    if [ -n "$DATASET" ]; then set -- --dataset "$DATASET"; else set --; fi
    searching search "$@" --out "$OUT" --resume "$RESUME"
}

gate() {
    due gate || return 0
    indexcache eval "$OUT" --model "$MODEL" --max-delta "$MAX_DELTA" --gate "$GATE"
}

render() {
    due render || return 0
    indexcache report "$OUT"
    if [ -n "$PLAN" ]; then
        indexcache diff "$PLAN" "$OUT" > "$OUT/diff.txt"
        { echo '```'; cat "$OUT/diff.txt"; echo '```'; } >> "$SUMMARY"
    fi
    cat "$OUT/report.md" >> "$SUMMARY"
}

publish() {
    due publish || return 0
    mkdir -p "$PUBLIC"
    for name in plan.json windows.safetensors report.html report.md; do cp "$OUT/$name" "$PUBLIC/"; done
    for path in "$OUT"/*.svg "$OUT"/fingerprint.json "$OUT"/evaluation.json "$OUT"/diff.txt; do
        if [ -f "$path" ]; then cp "$path" "$PUBLIC/"; fi
    done
    cp "$OUT/card.md" "$PUBLIC/README.md"    # what the hub shows
    if [ -n "$PUBLISH_REPO" ]; then
        hf upload "$PUBLISH_REPO" "$PUBLIC" . --commit-message "Plan for $MODEL"
    fi
    echo "refresh: published in $PUBLIC${PUBLISH_REPO:+ and $PUBLISH_REPO}"
}

case ${1:-} in
    verify | price | search | gate | render | publish) "$1" ;;
    dry-run) verify; price ;;
    all) verify; price; search; gate; render; publish ;;
    *) echo "usage: sh refresh.sh all | dry-run | verify | price | search | gate | render | publish" >&2; exit 2 ;;
esac
